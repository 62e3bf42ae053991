//! What an objective measures in every step.

use serde::ser::{Serialize, SerializeMap, Serializer};

/// Something that is measured in every step.
#[derive(Debug, PartialEq)]
pub struct Measure {
    /// Its key in `metrics.jsonl`.
    pub name: &'static str,
    /// What the lines of progress call it, if they tell it.
    pub short: Option<&'static str>,
    /// How `curves.svg` draws it, if it does.
    pub curve: Option<Curve>,
}

/// A line of the curves.
#[derive(Debug, PartialEq)]
pub struct Curve {
    /// What the line is called.
    pub label: &'static str,
    /// Where it is drawn.
    pub panel: Panel,
    /// Its own within the panel.
    pub colour: Colour,
}

/// A panel of the curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panel {
    /// Parts of the loss, beside the whole.
    Loss,
    /// Shares of the batch, from 0 to 1.
    Accuracy,
}

/// Colours that are told apart by people who see few, on white and on black.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// That of text.
    Ink,
    /// For a part.
    Blue,
    /// For another part.
    Orange,
    /// For a third one.
    Green,
    /// For what stands alone.
    Violet,
}

/// What was measured in a step: a number for each [`Measure`] of the objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    measures: &'static [Measure],
    values: Vec<f64>,
}

impl Measured {
    /// `values` are those of `measures`, in order.
    ///
    /// # Panics
    /// Panics if they are not as many.
    pub fn new(measures: &'static [Measure], values: Vec<f64>) -> Self {
        assert_eq!(measures.len(), values.len(), "a value for each measure");
        Self { measures, values }
    }

    /// The value of the measure `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(measure, _)| measure.name == name).map(|(_, value)| value)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Measure, f64)> {
        self.measures.iter().zip(self.values.iter().copied())
    }
}

impl Serialize for Measured {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.values.len()))?;
        self.iter().try_for_each(|(measure, value)| map.serialize_entry(measure.name, &value))?;
        map.end()
    }
}
