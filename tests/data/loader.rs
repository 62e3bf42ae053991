//! Batches, prepared ahead.

use crate::common::*;
use qformer::ImageProcessor;
use qformer::data::{Augmentation, Dataset, Images, Loaded, Loader, LoaderOptions, Order, Position, Source};
use std::sync::Arc;

const OPTIONS: LoaderOptions = LoaderOptions {
    batch_size: 4,
    order: Order::Shuffled,
    seed: 42,
    text_length: 16,
    max_bad_samples: 100,
    augmentation: Augmentation::Blip2Train,
};

/// Nine images with twenty captions; images 2, 4, 5 and 7 and a caption are unreadable.
fn pictures(workplace: &Workplace) -> Arc<Dataset> {
    let mut lines = Vec::new();
    for image in 0..9 {
        let name = format!("{image}.png");
        match image {
            2 => {}
            4 => drop(workplace.write(&name, "no image at all")),
            5 => drop(workplace.write(&name, &png(5)[..200])),
            7 => {
                // A width of zero, with the checksum that goes with it.
                let mut bytes = png(7);
                bytes[16..20].fill(0);
                let sum = crc32fast::hash(&bytes[12..29]);
                bytes[29..33].copy_from_slice(&sum.to_be_bytes());
                workplace.write(&name, bytes);
            }
            _ => drop(workplace.picture(&name, image)),
        }
        lines.push(format!(r#"{{"image": "{name}", "caption": ["a red cat {image}", "two dogs"]}}"#));
    }
    lines.push(r#"{"image": "0.png", "caption": ["...", "a cup"]}"#.into());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    Arc::new(Dataset::open(&workplace.jsonl(&lines)).unwrap())
}

/// Rows of features, one caption each.
fn features(workplace: &Workplace, rows: usize) -> Arc<Dataset> {
    let captions = workplace.write("captions.jsonl", "{\"caption\": \"a cat\"}\n".repeat(rows));
    let features = vec![workplace.features("features.safetensors", rows, 0)];
    Arc::new(Dataset::open(&Source::Features { features, captions }).unwrap())
}

fn start(workplace: &Workplace, dataset: &Arc<Dataset>, options: LoaderOptions, from: Position) -> Loader {
    let preparation = (Some(ImageProcessor::blip2(8)), workplace.tokenizer());
    Loader::start(dataset.clone(), preparation, options, from, &[]).unwrap()
}

fn batches(loader: &mut Loader, count: usize) -> Vec<Loaded> {
    (0..count).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn a_loader_started_anywhere_goes_on_as_if_it_had_never_stopped() {
    let workplace = Workplace::new();
    let dataset = pictures(&workplace);
    for order in [Order::Shuffled, Order::Given] {
        let options = LoaderOptions { order, ..OPTIONS };
        let whole = batches(&mut start(&workplace, &dataset, options, Position::default()), 14);
        assert!(whole.last().unwrap().next.epoch >= 4);
        for (stopped, loaded) in whole.iter().enumerate().take(11) {
            let resumed = batches(&mut start(&workplace, &dataset, options, loaded.next), 3);
            for (resumed, whole) in resumed.iter().zip(&whole[stopped + 1..]) {
                assert_eq!(resumed.examples, whole.examples, "after batch {stopped}");
                assert_eq!(resumed.next, whole.next, "after batch {stopped}");
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_the_batches() {
    let workplace = Workplace::new();
    let dataset = pictures(&workplace);
    let of = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| batches(&mut start(&workplace, &dataset, OPTIONS, Position::default()), 6))
    };
    assert_eq!(of(1), of(5));
}

#[test]
fn an_epoch_has_every_readable_example_once_and_names_the_others() {
    let workplace = Workplace::new();
    let dataset = pictures(&workplace);
    // 11 of 20 can be read.
    let options = LoaderOptions { batch_size: 11, ..OPTIONS };
    let mut loader = start(&workplace, &dataset, options, Position::default());
    let [first, second] = [loader.next().unwrap(), loader.next().unwrap()];
    assert!(first.next.epoch == 1 || first.next.example < 20);
    let mut ids = first.examples.image_ids.clone();
    ids.sort_unstable();
    assert_eq!(ids, [0, 0, 0, 1, 1, 3, 3, 6, 6, 8, 8]);
    for (name, &id) in first.examples.names.iter().zip(&first.examples.image_ids) {
        assert_eq!(*name, format!("{id}.png"));
    }
    let told = [first.unreadable, second.unreadable].concat();
    assert_eq!(told.len(), 5, "{told:#?}");
    for fragment in [
        "2.png",
        "4.png: is neither JPEG, PNG nor WebP",
        "5.png: cannot be decoded",
        "7.png",
        "0.png: caption 18: the text is blank",
    ] {
        assert!(told.iter().any(|fault| fault.contains(fragment)), "{fragment}: {told:#?}");
    }
    assert_ne!(first.examples, second.examples);
}

#[test]
fn every_epoch_and_every_seed_has_an_order_of_its_own() {
    let workplace = Workplace::new();
    let dataset = features(&workplace, 12);
    let orders = |seed| {
        let options = LoaderOptions { batch_size: 12, seed, ..OPTIONS };
        let loaded = batches(&mut start(&workplace, &dataset, options, Position::default()), 3);
        loaded.into_iter().map(|loaded| loaded.examples.image_ids)
    };
    let orders: Vec<Vec<u32>> = orders(42).chain(orders(43)).collect();
    for (index, order) in orders.iter().enumerate() {
        assert!(orders[..index].iter().all(|other| other != order), "{orders:?}");
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..12).collect::<Vec<_>>());
    }
}

#[test]
fn views_change_from_epoch_to_epoch_and_with_the_seed_unless_they_are_not_to() {
    let workplace = Workplace::new();
    workplace.picture("0.png", 3);
    let dataset =
        Arc::new(Dataset::open(&workplace.jsonl(&[r#"{"image": "0.png", "caption": "a cat"}"#])).unwrap());
    let views = |options: LoaderOptions| {
        let options = LoaderOptions { batch_size: 1, ..options };
        let loaded = batches(&mut start(&workplace, &dataset, options, Position::default()), 2);
        loaded.into_iter().map(|loaded| match loaded.examples.images {
            Images::Pixels(pixels) => pixels,
            Images::Features(_) => panic!("these are pictures"),
        })
    };
    let augmented: Vec<_> = views(OPTIONS).chain(views(LoaderOptions { seed: 43, ..OPTIONS })).collect();
    for (index, view) in augmented.iter().enumerate() {
        assert_eq!(view.shape(), [1, 3, 8, 8]);
        assert!(augmented[..index].iter().all(|other| other != view), "view {index}");
    }
    let plain = dataset.pixels(&[0], &ImageProcessor::blip2(8)).unwrap();
    assert!(views(LoaderOptions { augmentation: Augmentation::None, ..OPTIONS }).all(|view| view == plain));
}

#[test]
fn texts_are_cleaned_tokenized_and_cut() {
    let workplace = Workplace::new();
    workplace.picture("0.png", 3);
    let line = r#"{"image": "0.png", "caption": ["A \"red\" CAT...", "a red cat on a table in the snow"]}"#;
    let dataset = Arc::new(Dataset::open(&workplace.jsonl(&[line])).unwrap());
    let options = LoaderOptions { batch_size: 2, order: Order::Given, text_length: 6, ..OPTIONS };
    let texts = start(&workplace, &dataset, options, Position::default()).next().unwrap().examples.texts;
    let tokenizer = workplace.tokenizer();
    assert_eq!(texts[0], tokenizer.encode("a red cat", 32).unwrap());
    assert_eq!(texts[1], tokenizer.encode("a red cat on a table in the snow", 6).unwrap());
    assert_eq!(texts[1].len(), 6);
}

#[test]
fn features_come_in_their_order_and_a_batch_goes_on_in_the_next_epoch() {
    let workplace = Workplace::new();
    let dataset = features(&workplace, 5);
    let options = LoaderOptions { batch_size: 3, order: Order::Given, ..OPTIONS };
    let preparation = (None, workplace.tokenizer());
    let mut loader = Loader::start(dataset, preparation, options, Position::default(), &[]).unwrap();
    for (rows, next) in [([0, 1, 2], (0, 3)), ([3, 4, 0], (1, 1)), ([1, 2, 3], (1, 4)), ([4, 0, 1], (2, 2))] {
        let loaded = loader.next().unwrap();
        let Images::Features(features) = loaded.examples.images else { panic!("these are features") };
        assert_eq!((features.shape(), features.values()), (&[3, 2, 4][..], &rows.map(row).concat()[..]));
        assert_eq!(loaded.examples.image_ids, rows.map(|row| row as u32));
        assert_eq!((loaded.next.epoch, loaded.next.example), next);
        assert_eq!(loaded.unreadable, [""; 0]);
    }
}

#[test]
fn a_batch_may_be_larger_than_the_data_set() {
    let workplace = Workplace::new();
    let options = LoaderOptions { batch_size: 23, ..OPTIONS };
    let dataset = features(&workplace, 5);
    let loaded = start(&workplace, &dataset, options, Position::default()).next().unwrap();
    for epoch in loaded.examples.image_ids.chunks(5) {
        let mut epoch = epoch.to_vec();
        epoch.sort_unstable();
        epoch.dedup();
        assert!(epoch.len() == 5 || epoch.len() == 3, "{epoch:?}");
    }
    assert_eq!(loaded.next, Position { epoch: 4, example: 3 });
}

#[test]
fn more_unreadable_samples_than_allowed_are_an_error_that_names_them() {
    let workplace = Workplace::new();
    let dataset = pictures(&workplace);
    let run = |max_bad_samples| {
        let options = LoaderOptions { max_bad_samples, order: Order::Given, ..OPTIONS };
        let mut loader = start(&workplace, &dataset, options, Position::default());
        let failed = (0..20).find_map(|_| loader.next().err());
        (failed.map(|error| error.to_string()), loader)
    };
    // Each is counted once, however many captions it has and epochs it is met in.
    assert_eq!(run(5).0, None);
    let (error, mut loader) = run(3);
    let error = error.unwrap();
    assert!(error.starts_with("4 samples cannot be read; `max_bad_samples` allows 3: "), "{error}");
    let at = ["2.png", "4.png", "5.png"].map(|name| error.find(name).unwrap());
    assert!(at.is_sorted() && !error.contains("7.png"), "{error}");
    // Those that an earlier loader told of count, and are not told of again.
    let mut earlier = start(&workplace, &dataset, OPTIONS, Position::default());
    let known: Vec<String> = (0..20).flat_map(|_| earlier.next().unwrap().unreadable).collect();
    assert_eq!(known.len(), 5);
    let again = |max_bad_samples| {
        let options = LoaderOptions { max_bad_samples, ..OPTIONS };
        let preparation = (Some(ImageProcessor::blip2(8)), workplace.tokenizer());
        let mut loader =
            Loader::start(dataset.clone(), preparation, options, Position::default(), &known).unwrap();
        (0..20).map(|_| loader.next().map(|loaded| loaded.unreadable.len())).collect::<Result<Vec<_>, _>>()
    };
    assert_eq!(again(5).unwrap(), [0; 20]);
    assert!(
        again(4).unwrap_err().to_string().contains("5 samples cannot be read; `max_bad_samples` allows 4")
    );
    let after = loader.next().unwrap_err().to_string();
    assert!(after.contains("has ended"), "{after}");
}

#[test]
fn a_data_set_without_a_readable_sample_is_an_error_not_an_endless_search() {
    let workplace = Workplace::new();
    let lines = [r#"{"image": "no.png", "caption": ["a", "b"]}"#, r#"{"image": "nor.png", "caption": "c"}"#];
    let dataset = Arc::new(Dataset::open(&workplace.jsonl(&lines)).unwrap());
    let error = start(&workplace, &dataset, OPTIONS, Position::default()).next().unwrap_err().to_string();
    assert!(error.starts_with("no sample can be read, of 3: "), "{error}");
    assert!(error.contains("no.png") && error.contains("nor.png"), "{error}");
}

#[test]
fn threads_end_with_the_loader() {
    let workplace = Workplace::new();
    let dataset = pictures(&workplace);
    for taken in [0, 1, 5] {
        let mut loader = start(&workplace, &dataset, OPTIONS, Position::default());
        drop(batches(&mut loader, taken));
        drop(loader);
        assert_eq!(Arc::strong_count(&dataset), 1, "after {taken} batches");
    }
}

#[test]
fn what_cannot_be_started_is_refused() {
    let workplace = Workplace::new();
    let dataset = pictures(&workplace);
    let refused = |dataset: &Arc<Dataset>, processor, options, from, fragment: &str| {
        let error = Loader::start(dataset.clone(), (processor, workplace.tokenizer()), options, from, &[]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
    };
    let (processor, start) = (Some(ImageProcessor::blip2(8)), Position::default());
    refused(&dataset, None, OPTIONS, start, "pictures take an image processor");
    let beyond = Position { epoch: 3, example: 20 };
    refused(
        &dataset,
        processor.clone(),
        OPTIONS,
        beyond,
        "stands at example 20 of an epoch, but the data set has 20",
    );
    for options in [LoaderOptions { batch_size: 0, ..OPTIONS }, LoaderOptions { text_length: 2, ..OPTIONS }] {
        refused(&dataset, processor.clone(), options, start, "a batch has 1 example or more");
    }
    let silent = Arc::new(Dataset::open(&workplace.jsonl(&[r#"{"image": "a", "caption": []}"#])).unwrap());
    refused(&silent, processor, OPTIONS, start, "no caption to learn from");
}
