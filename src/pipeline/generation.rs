//! Texts about images: captions, answers, ranked candidates and dialogue.

use super::images::{Images, VisionOutput};
use super::{GeneratedText, Pipeline};
use crate::error::{Error, Result};
use crate::generate::{Decoding, Hypothesis, Step};
use crate::models::language::Prompt;
use std::ops::ControlFlow;

/// What a language model's text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextTask {
    /// To say what an image shows: 5 beams and at most 30 tokens, as LAVIS has it.
    Caption,
    /// To answer a question shortly: 5 beams and at most 10 tokens; of OPT's answers the sum of their tokens'
    /// log-probabilities decides and of T5's that times their number, as LAVIS has it.
    Answer,
    /// To go on with a dialogue, token by token: the likeliest each time, at most 50.
    Chat,
}

/// A candidate that was ranked.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// Which of the candidates it is.
    pub candidate: usize,
    /// The sum of −ln p over its tokens.
    pub nll: f64,
}

impl Pipeline {
    /// Whether a language model was loaded.
    pub fn has_language_model(&self) -> bool {
        self.engine.generators()[1]
    }

    /// Whether the language model's 32-bit weights were rounded to bf16 for want of memory.
    pub fn language_model_was_narrowed(&self) -> bool {
        self.narrowed
    }

    /// How the language model's texts are generated where nothing else is asked for: as the checkpoint's
    /// `generation_config.json` says, and for the rest as suits the task.
    ///
    /// # Errors
    /// As [`Decoding::load`]; fails if there is no language model.
    pub fn decoding_for(&self, task: TextTask) -> Result<Decoding> {
        self.folder.decoding_for(task)
    }

    /// How a question is put to the language model, with `{}` for it, as the paper has it.
    pub fn question_prompt(&self) -> &'static str {
        if self.folder.is_t5() { "Question: {} Short answer:" } else { "Question: {} Answer:" }
    }

    /// What the language model says behind prompts, each about the image of the number beside it: the best first.
    ///
    /// # Errors
    /// As [`Pipeline::encode`]; fails if there is no language model, if a prompt is not fit for it, and as
    /// [`LanguageModel::generate`](crate::models::language::LanguageModel::generate).
    pub fn generate<'a, S: AsRef<str>>(
        &self,
        images: impl Into<Images<'a>>,
        prompts: &[(usize, S)],
        decoding: &Decoding,
    ) -> Result<Vec<Vec<GeneratedText>>> {
        self.generate_watched(images, prompts, decoding, &mut |_| ControlFlow::Continue(()))
    }

    fn generate_watched<'a, S: AsRef<str>>(
        &self,
        images: impl Into<Images<'a>>,
        prompts: &[(usize, S)],
        decoding: &Decoding,
        watch: &mut dyn FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<GeneratedText>>> {
        let (stops, image_token) = (self.folder.stops()?, self.image_token()?);
        let prompts = self.prompts(prompts)?;
        let mut found = vec![Vec::new(); prompts.len()];
        self.for_each_run(images, &prompts, |input, first, own| {
            let decoding = decoding.starting_at(first as u64);
            let texts = self.engine.generate(input, own, image_token, &decoding, &stops, &mut *watch)?;
            for (found, texts) in found[first..].iter_mut().zip(texts) {
                *found = self.texts(texts)?;
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Captions of each image by the language model, which go on from `prompt`: the best first.
    ///
    /// # Errors
    /// As [`Pipeline::generate`].
    pub fn describe<'a>(
        &self,
        images: impl Into<Images<'a>>,
        prompt: &str,
        decoding: &Decoding,
    ) -> Result<Vec<Vec<GeneratedText>>> {
        let mut captions = Vec::new();
        images.into().for_each_batch(self, |input, first| {
            let prompts: Vec<(usize, &str)> = (0..input.images()).map(|image| (image, prompt)).collect();
            let prompts = self.prompts(&prompts)?;
            let decoding = decoding.starting_at(first as u64);
            let (stops, image_token) = (self.folder.stops()?, self.image_token()?);
            let mut watch = |_| ControlFlow::Continue(());
            let texts = self.engine.generate(input, &prompts, image_token, &decoding, &stops, &mut watch)?;
            for texts in texts {
                captions.push(self.texts(texts)?);
            }
            Ok(())
        })?;
        Ok(captions)
    }

    /// Answers to questions, each about the image of the number beside it: the best first. How a question is put
    /// is [`Pipeline::question_prompt`]'s to say.
    ///
    /// ```
    /// use qformer::{DeviceName, Image, Pipeline, TextTask};
    ///
    /// # fn main() -> qformer::Result<()> {
    /// let pipeline = Pipeline::open("tests/golden/dialogue-opt/model", DeviceName::Cpu)?;
    /// let image = Image::File("tests/golden/dialogue-opt/images/coffee.png".as_ref());
    /// let answers = pipeline.answer(&[image], &[(0, "what is in the picture?")], &pipeline.decoding_for(TextTask::Answer)?)?;
    /// println!("{}", answers[0][0].text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and if a question is blank.
    pub fn answer<'a, S: AsRef<str>>(
        &self,
        images: impl Into<Images<'a>>,
        questions: &[(usize, S)],
        decoding: &Decoding,
    ) -> Result<Vec<Vec<GeneratedText>>> {
        let prompts = self.questions(questions, self.question_prompt())?;
        self.generate(images, &prompts, decoding)
    }

    /// Prompts that put questions as `template` says, with `{}` for the question.
    ///
    /// # Errors
    /// Fails if a question is blank, and if the template has no place for it.
    pub fn questions<S: AsRef<str>>(
        &self,
        questions: &[(usize, S)],
        template: &str,
    ) -> Result<Vec<(usize, String)>> {
        if !template.contains("{}") {
            let what = format!("`prompt` {template:?} has no {{}}, where the question goes");
            return Err(Error::usage(what).naming(&["prompt"]));
        }
        let put = |(index, (image, question)): (usize, &(usize, S))| match question.as_ref().trim() {
            "" => Err(Error::value(format!("question {index} is blank; ask something"))),
            question => Ok((*image, template.replacen("{}", question, 1))),
        };
        questions.iter().enumerate().map(put).collect()
    }

    /// How likely the language model finds each of `candidates` behind prompts, each about the image of the number beside
    /// it: the likeliest first, by the sum over its tokens, as LAVIS ranks. T5's end token is among them, and OPT's is not.
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and if a candidate is blank.
    pub fn rank<'a, S: AsRef<str>, C: AsRef<str>>(
        &self,
        images: impl Into<Images<'a>>,
        prompts: &[(usize, S)],
        candidates: &[C],
    ) -> Result<Vec<Vec<Ranked>>> {
        let tokenizer = self.folder.language_tokenizer()?;
        let tokens = |(index, candidate): (usize, &C)| match candidate.as_ref().trim() {
            "" => Err(Error::value(format!("candidate {index} is blank"))),
            // What continues a text begins with the space between; SentencePiece adds it itself.
            text if self.folder.is_t5() => tokenizer.encode(text),
            text => tokenizer.encode_part(&format!(" {text}")),
        };
        let candidates = candidates.iter().enumerate().map(tokens).collect::<Result<Vec<_>>>()?;
        let prompts = self.prompts(prompts)?;
        let mut ranked = vec![Vec::new(); prompts.len()];
        self.for_each_run(images, &prompts, |input, first, own| {
            let losses = self.engine.candidate_losses(input, own, &candidates)?;
            for (ranked, losses) in ranked[first..].iter_mut().zip(losses) {
                let sums = losses.iter().map(|tokens| tokens.iter().sum());
                *ranked = sums.enumerate().map(|(candidate, nll)| Ranked { candidate, nll }).collect();
                ranked.sort_by(|a, b| a.nll.total_cmp(&b.nll));
            }
            Ok(())
        })?;
        Ok(ranked)
    }

    /// A dialogue about an image.
    ///
    /// # Errors
    /// As [`Pipeline::encode`]; fails if there is no language model.
    pub fn chat(&self, image: super::Image<'_>) -> Result<Chat<'_>> {
        self.folder.language_tokenizer()?;
        Ok(Chat { pipeline: self, image: self.encode(&[image])?, history: Vec::new() })
    }

    /// The tokens of prompts.
    fn prompts<S: AsRef<str>>(&self, prompts: &[(usize, S)]) -> Result<Vec<Prompt>> {
        let tokenizer = self.folder.language_tokenizer()?;
        let prompt = |(index, (image, text)): (usize, &(usize, S))| {
            let tokens = tokenizer.encode(text.as_ref());
            let tokens = tokens.map_err(|error| Error::value(format!("prompt {index}: {error}")))?;
            Ok(Prompt { image: *image, tokens })
        };
        prompts.iter().enumerate().map(prompt).collect()
    }

    fn image_token(&self) -> Result<Option<u32>> {
        let own = self.config().image_token_index.and_then(|token| u32::try_from(token).ok());
        Ok(own.or(self.folder.language_tokenizer()?.image_token()))
    }

    fn texts(&self, found: Vec<Hypothesis>) -> Result<Vec<GeneratedText>> {
        let tokenizer = self.folder.language_tokenizer()?;
        let text = |hypothesis: Hypothesis| {
            let text = tokenizer.decode(&hypothesis.tokens)?.trim().to_owned();
            Ok(GeneratedText { text, tokens: hypothesis.tokens, score: hypothesis.score })
        };
        found.into_iter().map(text).collect()
    }

    /// Calls `work` with prompts that follow one another and are about images of one batch: the batch, the number of the
    /// first of them, and these, by the images' numbers in the batch.
    fn for_each_run<'a>(
        &self,
        images: impl Into<Images<'a>>,
        prompts: &[Prompt],
        mut work: impl FnMut(super::engine::Input<'_>, usize, &[Prompt]) -> Result<()>,
    ) -> Result<()> {
        let mut count = 0;
        images.into().for_each_batch(self, |input, first| {
            let batch = first..first + input.images();
            count = batch.end;
            let mut next = 0;
            while next < prompts.len() {
                let own = prompts[next..].iter().take_while(|prompt| batch.contains(&prompt.image)).count();
                if own > 0 {
                    let within = |prompt: &Prompt| Prompt { image: prompt.image - first, ..prompt.clone() };
                    let run: Vec<Prompt> = prompts[next..next + own].iter().map(within).collect();
                    work(input, next, &run)?;
                }
                next += own.max(1);
            }
            Ok(())
        })?;
        match prompts.iter().find(|prompt| prompt.image >= count) {
            None => Ok(()),
            Some(Prompt { image, .. }) => Err(Error::usage(format!(
                "a prompt is about image {image}, which is not among the {count} images"
            ))),
        }
    }
}

/// A dialogue about an image: every question is put with those before it and their answers.
pub struct Chat<'p> {
    pipeline: &'p Pipeline,
    image: VisionOutput,
    /// Questions and their answers.
    history: Vec<(String, String)>,
}

impl Chat<'_> {
    /// Questions and answers so far.
    pub fn history(&self) -> &[(String, String)] {
        &self.history
    }

    /// Forgets them.
    pub fn reset(&mut self) {
        self.history.clear();
    }

    /// What the language model answers. `told` is called with each part of the answer as it comes, at the end where beams
    /// are searched; a break ends the answer there.
    ///
    /// # Errors
    /// As [`Pipeline::answer`]. The dialogue is then as it was.
    pub fn ask(
        &mut self,
        question: &str,
        decoding: &Decoding,
        told: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<String> {
        let pipeline = self.pipeline;
        let question = question.trim();
        if question.is_empty() {
            return Err(Error::value("the question is blank; ask something"));
        }
        let past = self.history.iter().map(|(q, a)| format!("Question: {q} Answer: {a}. "));
        let prompt = past.collect::<String>() + &format!("Question: {question} Answer:");
        let stops = pipeline.folder.stops()?;
        let mut stream = pipeline.folder.language_tokenizer()?.stream();
        let mut failed = None;
        let mut is_begun = false;
        let mut watch = |step| {
            // Of a search nothing is known yet, but it may be broken off.
            let Step::Token { token, .. } = step else { return told("") };
            if stops.contains(&token) {
                return ControlFlow::Continue(());
            }
            match stream.push(token) {
                Ok(part) => {
                    let part = if is_begun { &part[..] } else { part.trim_start() };
                    is_begun |= !part.is_empty();
                    told(part)
                }
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let images = Images::Encoded(&self.image);
        let found = pipeline.generate_watched(images, &[(0, prompt)], decoding, &mut watch)?;
        if let Some(error) = failed {
            return Err(error);
        }
        let answer = found.into_iter().flatten().next().map(|text| text.text).unwrap_or_default();
        if !is_begun {
            // The beams are searched; the answer is known at the end.
            let _ = told(&answer);
        }
        self.history.push((question.to_owned(), answer.clone()));
        Ok(answer)
    }
}
