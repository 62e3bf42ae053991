//! Where the parameters of stage 1 of training come from: BLIP-2's beginning, or a checkpoint with what it
//! lacks begun anew.

use std::collections::BTreeMap;
use std::path::Path;

use super::init;
use super::load::reject;
use super::safetensors::Checkpoint;
use super::{NamedCheckpoint, Part, Spec, TensorSource, Tree};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::tensor::NumberType;

/// Values made at a time: an even number, as [`init::fill`] needs it.
const BLOCK: usize = 1 << 16;

/// Hugging Face's BERT, such as `bert-base-uncased`: what the Q-Former's text side begins with.
pub struct Bert {
    checkpoint: Checkpoint,
    /// Name in the file by the crate's name.
    stored: BTreeMap<String, String>,
}

impl Bert {
    /// Opens the folder of a BERT with a language-modelling head: `BertForPreTraining` or
    /// `BertForMaskedLM`.
    ///
    /// # Errors
    /// Fails as [`Checkpoint::open`], and if two tensors are the same by the crate's names.
    pub fn open(folder: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let mut stored = BTreeMap::new();
        for name in checkpoint.names() {
            let Some(own) = own_name(name) else { continue };
            if stored.insert(own, name.to_owned()).is_some() {
                let what =
                    format_args!("tensor \"{name}\" comes twice, with and without the prefix \"bert.\"");
                return Err(Error::input(checkpoint.path(), what));
            }
        }
        Ok(Self { checkpoint, stored })
    }

    /// What keeps `part` from being read, if anything does; `own` is the name it has here.
    fn fault(&self, part: &Part, own: &str) -> Option<String> {
        let Some(stored) = self.stored.get(own) else {
            return Some(format!("there is no tensor for \"{own}\" {:?}", part.shape));
        };
        let found = &self.checkpoint.get(stored).expect("stored names are the checkpoint's").shape;
        let fits = match &part.shape[..] {
            // The vocabulary may grow: BLIP-2 adds a token.
            [rows, rest @ ..] if grows(own) => {
                found.split_first().is_some_and(|(found, others)| found <= rows && others == rest)
            }
            shape => found == shape,
        };
        (!fits).then(|| format!("tensor \"{stored}\" has shape {found:?}, expected {:?}", part.shape))
    }
}

/// Whether the tensor has a row for each token.
fn grows(own: &str) -> bool {
    ["embeddings.word_embeddings.weight", "cls.predictions.bias"].contains(&own)
}

/// The crate's name of what a BERT calls `name`; `None` for what BLIP-2 does not take from it: segment
/// embeddings, pooler, next-sentence head, and second copies.
fn own_name(name: &str) -> Option<String> {
    // The spelling of the first BERTs.
    let name = match name.strip_suffix("LayerNorm.gamma") {
        Some(stem) => format!("{stem}LayerNorm.weight"),
        None => match name.strip_suffix("LayerNorm.beta") {
            Some(stem) => format!("{stem}LayerNorm.bias"),
            None => name.to_owned(),
        },
    };
    let name = name.strip_prefix("bert.").unwrap_or(&name);
    if let Some(norm) = name.strip_prefix("embeddings.LayerNorm.") {
        return Some(format!("qformer.layernorm.{norm}"));
    }
    if name.starts_with("encoder.layer.") {
        return Some(format!("qformer.{}", name.replacen("attention.self.", "attention.attention.", 1)));
    }
    let taken = [
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    ];
    taken.contains(&name).then(|| name.to_owned())
}

/// Whether BLIP-2 takes the tensor of this name from BERT.
fn is_berts(own: &str) -> bool {
    let in_encoder = own.starts_with("qformer.encoder.") && !own.contains(".crossattention.");
    in_encoder || ["embeddings.", "qformer.layernorm.", "cls."].iter().any(|prefix| own.starts_with(prefix))
}

/// A new model, as BLIP-2 begins its first stage: see [`init`]. With a [`Bert`], embeddings,
/// self-attention, both feed-forwards and the language-modelling head are that one's; tokens that it does not know
/// are drawn, with a bias of 0 for their prediction.
pub struct Initial<'a> {
    config: &'a Config,
    seed: u64,
    bert: Option<&'a Bert>,
}

impl<'a> Initial<'a> {
    /// A model of this configuration; the seed and, if there is one, the BERT decide every value.
    pub fn new(config: &'a Config, seed: u64, bert: Option<&'a Bert>) -> Self {
        Self { config, seed, bert }
    }

    /// The BERT that `part` is taken from, if it is, and by which of the crate's names.
    fn bert_of(&self, part: &Part) -> Option<(&'a Bert, String)> {
        let own = init::model_of(&part.name);
        self.bert.filter(|_| is_berts(&own)).map(|bert| (bert, own))
    }

    /// Makes the elements of `part` from `first` on.
    fn draw(&self, part: &Part, mut first: usize, sink: &mut dyn FnMut(usize, &[f32])) {
        let mut values = vec![0.0; BLOCK];
        while first < part.len() {
            // Blocks begin at an even place.
            let begin = first & !1;
            let values = &mut values[..BLOCK.min(part.len() - begin)];
            init::fill(&part.name, self.config, self.seed, begin, values);
            sink(first, &values[first - begin..]);
            first = begin + values.len();
        }
    }
}

impl TensorSource for Initial<'_> {
    fn check(&self, parts: &[&Part]) -> Result<()> {
        let Some(bert) = self.bert else { return Ok(()) };
        let faults = parts.iter().filter_map(|part| {
            let (bert, own) = self.bert_of(part)?;
            bert.fault(part, &own)
        });
        let remedy = "the Q-Former and the BERT that it begins with must be of one size";
        reject(bert.checkpoint.path(), faults.collect(), remedy)
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        let Some((bert, own)) = self.bert_of(part) else {
            self.draw(part, 0, sink);
            return Ok(0);
        };
        let stored = &bert.stored[&own];
        let not_finite = bert.checkpoint.read_f32(stored, &mut *sink)?;
        let known = bert.checkpoint.get(stored).expect("stored names are the checkpoint's").elements();
        self.draw(part, known, sink);
        Ok(not_finite)
    }
}

/// A checkpoint, and what begins anew beside it.
pub struct Layered<'a> {
    checkpoint: &'a NamedCheckpoint<'a>,
    initial: Initial<'a>,
    taken: Taken,
}

/// What is taken of a checkpoint.
#[derive(Clone, Copy)]
enum Taken {
    /// All but what it may lack.
    Everything,
    /// The image encoder alone.
    Encoder,
}

impl<'a> Layered<'a> {
    /// A checkpoint to go on from; if it lacks the language-modelling head or the temperature, as Hugging
    /// Face's do, or what matching by cosines is scaled by, these are from `initial`.
    pub fn new(checkpoint: &'a NamedCheckpoint<'a>, initial: Initial<'a>) -> Self {
        Self { checkpoint, initial, taken: Taken::Everything }
    }

    /// The image encoder of `checkpoint`, and everything else from `initial`; as in BLIP-2's beginning, the
    /// encoder's last norm too.
    pub fn with_encoder_of(checkpoint: &'a NamedCheckpoint<'a>, initial: Initial<'a>) -> Self {
        Self { checkpoint, initial, taken: Taken::Encoder }
    }

    /// Names of the tensors of `specs` that begin anew.
    pub fn begun(&self, specs: &impl Tree<Spec>) -> Vec<String> {
        let mut begun = Vec::new();
        specs.map(&mut |spec| {
            let parts = spec.parts.iter().filter(|part| self.begins(part));
            begun.extend(parts.map(|part| part.name.clone()));
        });
        begun
    }

    /// Whether `part` begins anew.
    fn begins(&self, part: &Part) -> bool {
        let name = &*part.name;
        match self.taken {
            Taken::Everything => {
                let may = ["temp", "itm_scale", "itm_bias"].contains(&name) || name.starts_with("cls.");
                may && !self.checkpoint.contains(name)
            }
            Taken::Encoder => {
                !name.starts_with("vision_model.") || name.starts_with("vision_model.post_layernorm.")
            }
        }
    }
}

impl TensorSource for Layered<'_> {
    fn check(&self, parts: &[&Part]) -> Result<()> {
        let (begun, had): (Vec<&Part>, Vec<&Part>) = parts.iter().partition(|part| self.begins(part));
        self.checkpoint.check(&had)?;
        self.initial.check(&begun)
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        match self.begins(part) {
            true => self.initial.read(part, sink),
            false => self.checkpoint.read(part, sink),
        }
    }

    fn read_into(&self, part: &Part, dtype: NumberType, to: &mut [u8]) -> Result<Option<usize>> {
        match self.begins(part) {
            true => self.initial.read_into(part, dtype, to),
            false => self.checkpoint.read_into(part, dtype, to),
        }
    }
}
