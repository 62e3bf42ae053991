//! Pickles that would do more than tell tensors.

use super::archive::*;
use crate::paths::path;
use std::process::Command;

/// What published exploits of pickles name, and what PyTorch's own loader was led astray by.
const GADGETS: [&str; 40] = [
    "os.system",
    "posix.system",
    "nt.system",
    "os.popen",
    "os.execv",
    "subprocess.Popen",
    "subprocess.call",
    "subprocess.check_output",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "builtins.compile",
    "builtins.__import__",
    "builtins.open",
    "__builtin__.eval",
    "importlib.import_module",
    "runpy._run_code",
    "runpy.run_path",
    "pickle.loads",
    "_pickle.loads",
    "torch.load",
    "torch.storage._load_from_bytes",
    "torch.jit.load",
    "torch.hub.load",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "numpy.core.multiarray._reconstruct",
    "numpy.load",
    "collections.Counter",
    "collections.OrderedDict.__init__",
    "functools.partial",
    "operator.attrgetter",
    "socket.create_connection",
    "webbrowser.open",
    "pty.spawn",
    "asyncio.unix_events._UnixSubprocessTransport",
    "pip.main",
    "timeit.timeit",
    "omegaconf.dictconfig.DictConfig",
];

fn refused_pickle(pickle: &[u8], fragment: &str) {
    assert_refused(&Archive::checkpoint(pickle.to_vec(), &[("0", counted(4))]).bytes, fragment);
}

#[test]
fn every_name_but_those_of_tensors_is_refused_with_its_name() {
    for gadget in GADGETS {
        let (module, name) = gadget.rsplit_once('.').unwrap();
        let global = format!("c{module}\n{name}\n").into_bytes();
        let stacked = [text(module), text(name), b"\x93".to_vec()].concat();
        let memoized = [text(module), b"\x94".to_vec(), text(name), b"q\x05h\x05\x93".to_vec()].concat();
        let argument = [b"(", &text("touch owned")[..], b"tR."].concat();
        for named in [&global, &stacked] {
            let fragment = format!("names {gadget}, ");
            refused_pickle(&[b"\x80\x02", &named[..], &argument].concat(), &fragment);
            // Beside the model, among the optimiser's state, as attributes, and as a storage's type.
            let good = state_dict(&[FOUR]);
            let beside = [&good[..good.len() - 2], &text("optimizer"), named, b")Ru."].concat();
            refused_pickle(&beside, &fragment);
            let attributes = [
                b"\x80\x02ccollections\nOrderedDict\n)R",
                &named[..],
                &argument[..argument.len() - 1],
                b"b.",
            ]
            .concat();
            refused_pickle(&attributes, &fragment);
            let storage =
                [b"\x80\x02(", &text("storage")[..], named, &text("0"), &text("cpu"), b"K\x04tQ."].concat();
            refused_pickle(&storage, &fragment);
        }
        refused_pickle(&[b"\x80\x04", &memoized[..], b"."].concat(), "");
    }
}

#[test]
fn operations_that_no_state_dict_needs_are_refused() {
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, EXT2, EXT4, PERSID, INT, LONG, FLOAT, DUP, POP, sets, buffers.
    for operation in *b"io\x81\x92\x82\x83\x84PILF201\x8f\x90\x91\x96\x97\x98SVl dg\x8b" {
        let pickle = [b"\x80\x02ccollections\nOrderedDict\n)", &[operation][..], b"os\nsystem\n."].concat();
        refused_pickle(&pickle, &format!("has operation {operation:#04x}"));
    }
    // Whatever comes first, and whatever follows three values.
    for operation in 0..=255 {
        for start in [&b""[..], b"\x80\x02", b"NNN", b"}]}", b"}(NN"] {
            refused_pickle(&[start, &[operation]].concat(), "");
            refused_pickle(&[start, &[operation], &[0xff; 300]].concat(), "");
        }
    }
}

#[test]
fn values_built_from_what_they_are_not_built_from_are_refused() {
    let dict = "ccollections\nOrderedDict\n";
    let cases = [
        ("NN\x65", "a mark that is not there"),
        ("(Na", "not on its stack"),
        (")Na", "appends to what is no list"),
        ("]NNs", "sets items of what is no dict"),
        ("}(NNNu", "a key without a value"),
        ("}(N.", "values to spare"),
        ("}N.", "values to spare"),
        ("}.}.", "before its entry does"),
        ("h\x01.", "never kept"),
        ("q\x01.", "not on its stack"),
        ("N)R.", "calls what is no name"),
        (&format!("{dict}NR."), "where a tuple is due"),
        (&format!("{dict}N\u{1}\u{2}"), "operation 0x01"),
        (&format!("{dict}(NtR."), "from what it is not built from"),
        ("ctorch\nFloatStorage\n(K\u{4}tR.", "from what it is not built from"),
        ("ctorch\nSize\n(NtR.", "from what it is not built from"),
        ("]Nb.", "attributes to what is no dict"),
        ("NQ.", "where a tuple is due"),
        ("(NtQ.", "not told by five values"),
        ("(NNNNNtQ.", "of no type"),
        ("ctorch._utils\n_rebuild_parameter\n(NNNtR.", "from what it is not built from"),
        ("ctorch._utils\n_rebuild_tensor_v2\n(NK\u{0}))NtR.", "from what it is not built from"),
        ("ctorch._utils\n_rebuild_tensor_v2\n(NK\u{0}))NNtR.", "without a storage"),
        ("ctorch\nFloatStorage", "cut short"),
        ("]q\u{1}h\u{1}a.", "no dict of tensors"),
        ("}.", "no dict of tensors"),
        ("K\u{5}.", "no dict of tensors"),
    ];
    for (pickle, fragment) in cases {
        refused_pickle(pickle.as_bytes(), fragment);
    }
    refused_pickle(b"\x80\x06.", "protocol 6");
    refused_pickle(b"X\x04\0\0\0\xff\xfe\xfd\xfc.", "not UTF-8");
    for declared in [
        &b"X\xff\xff\xff\xff"[..],
        b"B\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8a\xff",
    ] {
        refused_pickle(declared, "cut short");
    }
}

#[test]
fn tensors_beyond_their_storage_are_refused() {
    let view = |offset, shape, strides| View { offset, shape, strides, ..FOUR };
    const MAX: i64 = i64::MAX;
    let long = "n".repeat(513);
    let outside: [View<'_>; 14] = [
        view(0, &[5], &[1]),
        view(1, &[4], &[1]),
        view(4, &[1], &[1]),
        view(5, &[0], &[1]),
        view(MAX, &[4], &[1]),
        view(0, &[2], &[4]),
        view(0, &[2], &[MAX]),
        view(MAX, &[2], &[MAX]),
        view(0, &[2, 2], &[MAX, MAX]),
        view(0, &[MAX], &[1]),
        view(0, &[MAX, MAX], &[0, 0]),
        view(0, &[MAX, MAX, 0], &[1, 1, 1]),
        view(0, &[2, 2, 2], &[1, 1, 2]),
        view(0, &[3, 3], &[1, 1]),
    ];
    for view in outside {
        let archive = Archive::checkpoint(state_dict(&[view]), &[("0", counted(4))]);
        assert_refused(&archive.bytes, "of its storage");
    }
    let cases = [
        (view(-1, &[4], &[1]), "has -1 where a size is due"),
        (view(0, &[-4], &[1]), "has -4 where a size is due"),
        (view(0, &[4], &[-1]), "has -1 where a size is due"),
        (view(0, &[2, 2], &[1]), "2 extents and 1 strides"),
        (view(0, &[1; 9], &[1; 9]), "a tensor of 9 dimensions; at most 8 are read"),
        (view(0, &[1 << 40], &[0]), "far more elements than the file"),
        (view(0, &[1 << 62, 2], &[0, 0]), "far more elements than the file"),
        (View { elements: 5, ..FOUR }, "its storage has 16 bytes, not 5 elements"),
        (View { elements: 3, shape: &[3], ..FOUR }, "its storage has 16 bytes, not 3 elements"),
        (View { elements: i64::MAX, ..FOUR }, "its storage has 16 bytes"),
        (View { storage: "DoubleStorage", ..FOUR }, "not 4 elements of F64"),
        (View { storage: "UntypedStorage", ..FOUR }, "names torch.UntypedStorage"),
        (View { key: "1", ..FOUR }, "there is no storage \"1\""),
        (View { key: "../data.pkl", ..FOUR }, "there is no storage"),
        (View { name: &long, ..FOUR }, "a name of at most 512 bytes"),
    ];
    for (view, fragment) in cases {
        let archive = Archive::checkpoint(state_dict(&[view]), &[("0", counted(4))]);
        assert_refused(&archive.bytes, fragment);
    }
    let archive = Archive::checkpoint(state_dict(&[FOUR, FOUR]), &[("0", counted(4))]);
    assert_refused(&archive.bytes, "tensor \"x\": comes twice");
}

/// Pickles that blow up, nest or flood, each of megabytes.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let repeated = |unit: &[u8], times: usize| unit.repeat(times);
    let mut memo = b"]q\0".to_vec();
    for level in 0..200_000_u32 {
        // A list of the one before, four times.
        let get = [&b"j"[..], &level.to_le_bytes()].concat();
        let put = [&b"er"[..], &(level + 1).to_le_bytes()].concat();
        memo.extend([&b"]("[..], &get.repeat(4), &put].concat());
    }
    vec![
        ("memo", memo),
        ("tuples within tuples", [&b")"[..], &repeated(b"\x85", 4 << 20), b"."].concat()),
        ("lists within lists", [repeated(b"]", 400_000), repeated(b"a", 399_999), b".".to_vec()].concat()),
        ("dicts", repeated(b"}", 4 << 20)),
        ("marks", repeated(b"(", 4 << 20)),
        ("nothing", repeated(b"N", 4 << 20)),
        ("kept", (0..2_000_000_u32).flat_map(|i| [&b"Nr"[..], &i.to_le_bytes()].concat()).collect()),
        ("appended", [&b"]"[..], &[&b"("[..], &repeated(b"N", 1 << 19), b"e"].concat().repeat(30)].concat()),
        ("texts", repeated(b"X\0\0\0\0", 2_000_000)),
        ("names", repeated(b"ctorch\nSize\n", 2_000_000)),
        ("dicts by name", [&b"ccollections\nOrderedDict\nq\0"[..], &repeated(b"h\0)R", 2_000_000)].concat()),
        ("a list in itself", [&b"]q\0"[..], &repeated(b"h\0a", 1_000_000), b"."].concat()),
        ("frames", repeated(b"\x95\0\0\0\0\0\0\0\0", 1_000_000)),
    ]
}

#[test]
fn pickles_that_blow_up_are_refused_in_little_memory_and_time() {
    let folder = tempfile::tempdir().unwrap();
    for (name, pickle) in bombs() {
        let bytes = pickle.len();
        let path_of = folder.path().join("model.pth");
        std::fs::write(&path_of, Archive::checkpoint(pickle, &[]).bytes).unwrap();
        // Private writable memory in KiB (the program's own file, however large, is not in it): what any run writes and sixteen
        // times the pickle.
        let limit = (16 * bytes + (64 << 20)) / 1024;
        let script = format!("ulimit -d {limit}; ulimit -t 10; exec \"$0\" inspect \"$1\"");
        let output = Command::new("sh")
            .args(["-c", &script])
            .arg(path(env!("CARGO_BIN_EXE_qformer")))
            .arg(&path_of)
            .env("RAYON_NUM_THREADS", "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {told}");
        assert!(told.starts_with("error: ") && told.contains("model.pth: "), "{name}: {told}");
    }
}
