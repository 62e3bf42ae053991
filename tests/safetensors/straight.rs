//! Values of valid files, read straight into the place where they stay.

use crate::{Random, file_of, on_disk, values};
use half::{bf16, f16};
use qformer::params::safetensors::Checkpoint;
use qformer::params::{NamedCheckpoint, Slot, Spec, Tree, Weights};
use qformer::tensor::{Number, NumberType, Packing, Weight};
use qformer::{Cpu, Result};

/// A weight, a table of embeddings, a vector and a table of another kind.
struct Parameters<T>([T; 4]);

impl<T> Tree<T> for Parameters<T> {
    type With<U> = Parameters<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Parameters<U> {
        Parameters(self.0.each_ref().map(leaf))
    }
}

/// Names and shapes of the parameters' tensors: the weight is two of them.
const TENSORS: [(&str, &[usize]); 5] =
    [("key", &[170, 401]), ("value", &[3, 401]), ("words", &[33, 7]), ("bias", &[173]), ("places", &[5, 7])];

fn specs() -> Parameters<Spec> {
    let weight = Spec::weight([("key".to_owned(), 170), ("value".to_owned(), 3)], 401);
    let vector = Spec::vector([("bias".to_owned(), 173)]);
    let table = Spec::table("places".to_owned(), &[5, 7], 7);
    Parameters([weight, Spec::embedding("words".to_owned(), 33, 7), vector, table])
}

/// A file of these tensors, with numbers of type `dtype` made from `bytes_of(value)`.
fn file(dtype: &str, bytes_of: &dyn Fn(f32) -> Vec<u8>) -> (Vec<u8>, Vec<f32>) {
    let mut random = Random(5);
    let (mut header, mut data, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in TENSORS {
        let begin = data.len();
        for _ in 0..shape.iter().product() {
            // Of 24 bits: neither 16-bit type holds them.
            values.push((random.below(1 << 25) as f32 - (1 << 24) as f32) / (1 << 24) as f32);
            data.extend(bytes_of(*values.last().unwrap()));
        }
        let end = data.len();
        header.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    (file_of(&format!("{{{}}}", header.join(",")), &data), values)
}

/// The numbers of a parameter that is stored by rows.
fn numbers<N: Number>(weight: Weight<'_, Cpu>) -> Vec<u32> {
    let matrix = weight.matrix::<N>();
    (0..matrix.rows()).flat_map(|row| matrix.row(row)).map(|x| x.to_f32().to_bits()).collect()
}

fn load(path: &std::path::Path, dtype: NumberType) -> Result<Weights<Cpu, Parameters<Slot>>> {
    let checkpoint = Checkpoint::open(path)?;
    let source = NamedCheckpoint::new(&checkpoint)?;
    Weights::load_as(&Cpu::new(), &specs(), &source, dtype, &mut |_, _| ())
}

/// What is in a file of numbers of `F` is, loaded as `N`, each of them rounded to the nearest.
fn matrices_are_loaded_as<N: Number>(dtype: &str, bytes_of: &dyn Fn(f32) -> Vec<u8>, read: fn(f32) -> f32) {
    let (bytes, values) = file(dtype, bytes_of);
    let (_folder, path) = on_disk(&bytes);
    let weights = load(&path, N::TYPE).unwrap();
    assert!(weights.not_finite.is_empty());
    let Parameters([weight, words, bias, places]) = weights.view();
    assert_eq!([weight, words].map(Weight::dtype), [N::TYPE; 2], "{dtype}");
    assert_eq!([bias, places].map(Weight::dtype), [NumberType::F32; 2], "{dtype}");
    assert_eq!(weight.packing(), Packing::Rows { pitch: 401 });
    let (weights, values) = values.split_at(173 * 401);
    let (words_of_file, values) = values.split_at(33 * 7);
    let rounded = |values: &[f32]| -> Vec<u32> {
        values.iter().map(|&x| N::of_f32(read(x)).to_f32().to_bits()).collect()
    };
    let kept = |values: &[f32]| -> Vec<u32> { values.iter().map(|&x| read(x).to_bits()).collect() };
    assert!(numbers::<N>(weight) == rounded(weights), "{dtype} as {:?}", N::TYPE);
    assert!(numbers::<N>(words) == rounded(words_of_file), "{dtype} as {:?}", N::TYPE);
    assert!(numbers::<f32>(bias) == kept(&values[..173]), "{dtype}");
    assert!(numbers::<f32>(places) == kept(&values[173..]), "{dtype}");
}

#[test]
fn matrices_are_loaded_in_the_type_that_is_asked_for() {
    let of_f32 = |x: f32| x.to_le_bytes().to_vec();
    let of_f64 = |x: f32| f64::from(x).to_le_bytes().to_vec();
    let of_f16 = |x: f32| f16::from_f32(x).to_le_bytes().to_vec();
    let of_bf16 = |x: f32| bf16::from_f32(x).to_le_bytes().to_vec();
    matrices_are_loaded_as::<bf16>("F32", &of_f32, |x| x);
    matrices_are_loaded_as::<f16>("F32", &of_f32, |x| x);
    matrices_are_loaded_as::<bf16>("F64", &of_f64, |x| x);
    matrices_are_loaded_as::<bf16>("BF16", &of_bf16, |x| bf16::from_f32(x).to_f32());
    matrices_are_loaded_as::<f16>("BF16", &of_bf16, |x| bf16::from_f32(x).to_f32());
    matrices_are_loaded_as::<f16>("F16", &of_f16, |x| f16::from_f32(x).to_f32());
    matrices_are_loaded_as::<bf16>("F16", &of_f16, |x| f16::from_f32(x).to_f32());
}

#[test]
fn a_type_that_the_device_does_not_multiply_by_is_its_own() {
    let (bytes, _) = file("F32", &|x: f32| x.to_le_bytes().to_vec());
    let (_folder, path) = on_disk(&bytes);
    let weights = load(&path, NumberType::F64).unwrap();
    let Parameters([weight, words, ..]) = weights.view();
    assert_eq!([weight, words].map(Weight::dtype), [NumberType::F32; 2]);
    // A weight is then packed as the device likes.
    assert!(!matches!(weight.packing(), Packing::Rows { .. }));
    assert_eq!(words.packing(), Packing::Rows { pitch: 7 });
}

/// A file whose only tensor, `x`, is `data`.
fn file_with(dtype: &str, elements: usize, data: &[u8]) -> Vec<u8> {
    let end = data.len();
    file_of(&format!(r#"{{"x":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[0,{end}]}}}}"#), data)
}

#[test]
fn rounding_is_to_the_nearest_and_of_two_to_the_even_one() {
    // Halfway between two neighbours of bf16, whose last bit is 2⁻⁷ of 1, and of f16, whose is 2⁻¹⁰.
    let (b, h) = (2.0_f32.powi(-8), 2.0_f32.powi(-11));
    let cases = [
        (NumberType::Bf16, [1.0 + b, 1.0 + 3.0 * b, 1.0 + b * 1.001], [1.0, 1.0 + 4.0 * b, 1.0 + 2.0 * b]),
        (NumberType::F16, [1.0 + h, 1.0 + 3.0 * h, 1.0 + h * 1.001], [1.0, 1.0 + 4.0 * h, 1.0 + 2.0 * h]),
    ];
    for (dtype, given, want) in cases {
        let data: Vec<u8> = given.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (_folder, path) = on_disk(&file_with("F32", 3, &data));
        let mut numbers = [0_u16; 3];
        let to = bytemuck::cast_slice_mut(&mut numbers);
        assert_eq!(Checkpoint::open(&path).unwrap().read_into("x", dtype, to).unwrap(), Some(0));
        let got = numbers.map(|bits| match dtype {
            NumberType::F16 => f16::from_bits(bits).to_f32(),
            _ => bf16::from_bits(bits).to_f32(),
        });
        assert_eq!(got, want, "{dtype:?}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_counted_wherever_blocks_meet() {
    // Two blocks and a few more.
    const ELEMENTS: usize = (1 << 18) + 5;
    let places = [0, 1 << 16, (1 << 17) - 1, 1 << 17, ELEMENTS - 1];
    let mut stored = vec![f16::from_f32(-2.5); ELEMENTS];
    for (place, x) in
        places.into_iter().zip([f16::NAN, f16::INFINITY, f16::NEG_INFINITY, -f16::NAN, f16::NAN])
    {
        stored[place] = x;
    }
    let data: Vec<u8> = stored.iter().flat_map(|x| x.to_le_bytes()).collect();
    let (_folder, path) = on_disk(&file_with("F16", ELEMENTS, &data));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut words = vec![0_u64; ELEMENTS.div_ceil(2)];
    for dtype in [NumberType::F16, NumberType::Bf16, NumberType::F32] {
        let to = &mut bytemuck::cast_slice_mut(&mut words)[..ELEMENTS * dtype.bytes()];
        assert_eq!(checkpoint.read_into("x", dtype, to).unwrap(), Some(5), "{dtype:?}");
        if dtype == NumberType::F16 {
            assert!(*to == data[..], "the numbers are the file's");
        }
    }
    assert_eq!(values(&checkpoint, "x").1, 5);
}

#[test]
fn what_is_too_large_for_the_type_is_counted() {
    let (_folder, path) = on_disk(&file_with("F32", 2, bytemuck::cast_slice(&[65504.0_f32, 65520.0])));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut numbers = [0_u16; 2];
    for (dtype, count) in [(NumberType::F16, 1), (NumberType::Bf16, 0)] {
        let to = bytemuck::cast_slice_mut(&mut numbers);
        assert_eq!(checkpoint.read_into("x", dtype, to).unwrap(), Some(count), "{dtype:?}");
    }
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_not_read_into_place() {
    let (_folder, path) = on_disk(&file_with("BF16", 1 << 20, &vec![0; 2 << 20]));
    let checkpoint = Checkpoint::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let mut words = vec![0_u64; 1 << 18];
    let read = checkpoint.read_into("x", NumberType::Bf16, bytemuck::cast_slice_mut(&mut words));
    let message = read.unwrap_err().to_string();
    assert!(message.contains("ends within tensor \"x\""), "{message}");
}
