//! A kernel's arguments are a struct in CUDA and one in Rust. Both assert its size; that they have the same fields of
//! the same types in the same order is read here from their texts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Type and name of a field.
type Field = (String, String);

/// Structs by name, each with its fields, those of a base first.
type Structs = BTreeMap<String, Vec<Field>>;

/// The texts of the files below `folder` that end like this, without comments.
fn texts(folder: &str, endings: &[&str]) -> Vec<String> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(ending) if endings.iter().any(|e| ending == *e) => files.push(path),
                _ => {}
            }
        }
    }
    let code = |line: &str| line.split("//").next().unwrap().to_owned() + "\n";
    files.iter().map(|file| fs::read_to_string(file).unwrap().lines().map(code).collect()).collect()
}

/// `text` from after `start` up to `end`.
fn between<'t>(text: &'t str, start: &str, end: &str) -> Option<&'t str> {
    let (_, after) = text.split_once(start)?;
    Some(after.split_once(end)?.0)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The leading word of `text`.
fn word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// `In<'a, bf16>` as `In<bf16>`, `f32` as `float`.
fn rust_type(text: &str) -> String {
    let text = text.replace("'a, ", "").replace("<'a>", "").replace("f32", "float");
    match text.strip_prefix("*const ").or(text.strip_prefix("*mut ")) {
        Some(pointed) => format!("{pointed} *"),
        None => text,
    }
}

fn rust_structs() -> (Structs, BTreeMap<String, String>) {
    let (mut structs, mut kernels) = (Structs::new(), BTreeMap::new());
    for text in texts("src/ops", &["rs"]).into_iter().chain(texts("src/device/cuda", &["rs"])) {
        for part in text.split("struct ").skip(1) {
            let name = word(part);
            let Some(body) = between(part, "{", "}") else { continue };
            // `("unit", "kernel", bytes)`
            if let Some(kernel) = part[name.len()..].strip_prefix("(\"").and_then(|p| p.split('"').nth(2)) {
                kernels.insert(kernel.to_owned(), name.to_owned());
            }
            let mut fields = Vec::new();
            for line in body.lines().map(str::trim).filter(|line| line.contains(": ")) {
                let line = line.trim_start_matches("pub(crate) ").trim_end_matches(',');
                let (field, of) = line.split_once(": ").unwrap();
                match of.strip_prefix('[').and_then(|of| of.trim_end_matches(']').split_once("; ")) {
                    Some((of, count)) => fields.push((rust_type(of), format!("{field}[{count}]"))),
                    None if of.starts_with("PhantomData") => {}
                    None => fields.push((rust_type(of), field.to_owned())),
                }
            }
            structs.insert(name.to_owned(), fields);
        }
    }
    (structs, kernels)
}

fn cuda_structs() -> (Structs, BTreeMap<String, String>) {
    let (mut structs, mut kernels) = (Structs::new(), BTreeMap::new());
    for text in texts("kernels", &["cu", "cuh"]) {
        for part in text.split("struct ").skip(1) {
            let name = word(part);
            let Some(body) = between(part, "{", "\n};") else { continue };
            let mut fields = Vec::new();
            if let Some(base) = between(part, ": ", " {").filter(|base| base.chars().all(is_word)) {
                fields.push((base.to_owned(), "base".to_owned()));
            }
            // Functions come after the fields.
            let declared = body.split(['(']).next().unwrap();
            for statement in declared.split_inclusive(';').filter_map(|s| s.strip_suffix(';')) {
                let statement = statement.split_whitespace().collect::<Vec<_>>().join(" ");
                let statement = statement.trim_start_matches("const ");
                let Some(end) = statement.find(['>', '*', ' ']) else { continue };
                let of = if statement[end..].starts_with(' ') && !statement[end..].starts_with(" *") {
                    &statement[..end]
                } else {
                    &statement[..=statement.find(['>', '*']).unwrap()]
                };
                for field in statement[of.len()..].split(',') {
                    fields.push((of.to_owned(), field.trim().to_owned()));
                }
            }
            // Others are of constants alone.
            if fields.iter().all(|(of, _)| of != "static") {
                structs.insert(name.to_owned(), fields);
            }
        }
        for part in text.split("__global__").skip(1) {
            let Some((before, after)) = part.split_once("(const __grid_constant__ ") else { continue };
            let kernel = before.rsplit(|c| !is_word(c)).next().unwrap();
            kernels.insert(kernel.to_owned(), after.split(' ').next().unwrap().to_owned());
        }
        for part in text.split("enum class ").skip(1).filter(|part| part.contains(": u32")) {
            structs.insert(word(part).to_owned(), vec![("u32".to_owned(), "number".to_owned())]);
        }
    }
    (structs, kernels)
}

/// The fields of a struct, those of structs within it in their place; `T` of a template stands for `of`.
fn flat(structs: &Structs, name: &str, of: &str, fields: &mut Vec<Field>) {
    for (field_type, field) in &structs[name] {
        let field_type = field_type.replace("<T>", &format!("<{of}>"));
        match structs.get(&field_type) {
            // Numbers with names are one number in Rust.
            Some(inner) if inner[..] == [("u32".to_owned(), "number".to_owned())] => {
                fields.push(("u32".to_owned(), field.clone()));
            }
            Some(_) if !["TensorMap"].contains(&&*field_type) => flat(structs, &field_type, of, fields),
            _ => fields.push((field_type, field.clone())),
        }
    }
}

#[test]
fn rust_and_cuda_agree_on_the_arguments_of_every_kernel() {
    let ((rust, kernels), (cuda, of_kernel)) = (rust_structs(), cuda_structs());
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for (kernel, own) in &kernels {
        // Kernels that a macro declares take the struct of the same name, or the one that it has within.
        let within = rust[own].first().map(|(of, _)| of).filter(|_| rust[own].len() == 1);
        let candidates = [of_kernel.get(kernel), Some(own), within];
        let is_struct = |twin: &&String| cuda.contains_key(twin.split('<').next().unwrap());
        let twin = candidates.into_iter().flatten().find(is_struct);
        pairs.push((own, twin.unwrap_or_else(|| panic!("kernel {kernel}: {own} is not in kernels/"))));
    }
    // Those that have the same name, as a part or by a macro.
    let is_in_both = |name: &&String| name.ends_with("Args") && cuda.contains_key(*name);
    pairs.extend(rust.keys().filter(is_in_both).map(|name| (&**name, &**name)));
    assert!(pairs.len() > 60, "only {} structs were seen", pairs.len());
    for (own, twin) in pairs {
        let (twin, of) =
            twin.split_once('<').map_or((twin, "bf16"), |(twin, of)| (twin, &of[..of.len() - 1]));
        let [mut found, mut expected] = [Vec::new(), Vec::new()];
        flat(&rust, own, "", &mut found);
        flat(&cuda, twin, of, &mut expected);
        // `head.width`, flat, is `width`, for which Rust may say `head_width`.
        let is_twin = |((of, name), (twin_of, twin)): (&Field, &Field)| {
            of == twin_of && (name == twin || name.ends_with(&format!("_{twin}")))
        };
        let is_same = found.len() == expected.len() && found.iter().zip(&expected).all(is_twin);
        assert!(is_same, "{own} in Rust: {found:?}; {twin} in CUDA: {expected:?}");
    }
}

#[test]
fn exchanged_fields_are_seen() {
    let (cuda, _) = cuda_structs();
    let mut fields = Vec::new();
    flat(&cuda, "FoldForwardArgs", "", &mut fields);
    let names: Vec<&str> = fields.iter().map(|(_, name)| &**name).collect();
    assert_eq!(names[..4], ["weight", "bias", "norm_weight", "norm_bias"]);
    assert_eq!(fields[0].0, "In<bf16>");
}
