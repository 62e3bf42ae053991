use crate::common::{Tensor, measure, operations};
use criterion::Criterion;
use qformer::device::Cpu;
use qformer::ops::contrastive::{
    ContrastiveBackward, ContrastiveBatch, ContrastiveForward, ContrastiveGradient, ContrastiveOp, Negatives,
    workspace_words,
};

const QUERIES: usize = 32;
const WIDTH: usize = 256;
const PAIRS: usize = 100;

pub(crate) fn benchmark(criterion: &mut Criterion) {
    let (mut queries, mut texts) = (Tensor::rows(PAIRS * QUERIES, WIDTH), Tensor::rows(PAIRS, WIDTH));
    let mut temperature = Tensor::output(1, 1);
    temperature.view_mut().row_mut(0)[0] = 1.0;
    let mut ids = Tensor::indices(&(0..PAIRS as u32).collect::<Vec<_>>());
    let ids = ids.view();
    let batch = ContrastiveBatch {
        queries: queries.view(),
        texts: texts.view(),
        temperature: temperature.view(),
        image_ids: ids,
        text_ids: ids,
        smoothing: 0.1,
    };
    let mut key = Tensor::indices(&[1, 2]);
    let [mut recalled, mut negative_texts, mut negative_images, mut workspace] =
        [2, PAIRS, PAIRS, workspace_words(PAIRS, PAIRS, [QUERIES, WIDTH])]
            .map(|n| Tensor::indices(&vec![0; n]));
    let (mut image_statistics, mut text_statistics) = (Tensor::output(2, PAIRS), Tensor::output(2, PAIRS));
    let mut winner = Tensor::bytes(PAIRS, PAIRS);
    let work = operations(&[[PAIRS * QUERIES, PAIRS, WIDTH]]);
    measure(criterion, "contrastive", "100×100", work, &mut Tensor::output(1, 1), |loss| {
        let args = ContrastiveForward {
            batch,
            negatives: Negatives::Sampled { key: key.view(), site: 0 },
            image_statistics: image_statistics.view_mut(),
            text_statistics: text_statistics.view_mut(),
            winner: winner.view_mut(),
            loss: loss.view_mut(),
            recalled: recalled.view_mut(),
            negative_texts: negative_texts.view_mut(),
            negative_images: negative_images.view_mut(),
            workspace: workspace.view_mut(),
        };
        Cpu::new().contrastive_forward(args).unwrap();
    });
    let mut dtexts = Tensor::output(PAIRS, WIDTH);
    let mut dtemperature = Tensor::output(1, 1);
    // Of each pair a product again, and one for either gradient.
    let work = operations(&[[PAIRS, PAIRS, WIDTH]; 4]);
    let mut dqueries = Tensor::output(PAIRS * QUERIES, WIDTH);
    measure(criterion, "contrastive", "100×100, backward", work, &mut dqueries, |dqueries| {
        let args = ContrastiveBackward {
            batch,
            gradient: ContrastiveGradient::OneSided,
            weight: 1.0,
            image_statistics: image_statistics.view(),
            text_statistics: text_statistics.view(),
            winner: winner.view(),
            dqueries: dqueries.view_mut(),
            dtexts: dtexts.view_mut(),
            dtemperature: dtemperature.view_mut(),
            workspace: workspace.view_mut(),
        };
        Cpu::new().contrastive_backward(args).unwrap();
    });
}
