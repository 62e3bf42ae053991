//! The parts of a model, told by the names of their tensors.

/// A part of a model, in the order of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    ImageEncoder,
    ImageNorm,
    QueryTokens,
    TextEmbeddings,
    EmbeddingNorm,
    SelfAttention,
    CrossAttention,
    QueryFeedForward,
    TextFeedForward,
    RetrievalHeads,
    LanguageModellingHead,
    Temperature,
    SimilarityLogit,
    LanguageProjection,
    LanguageModel,
    /// Tensors that repeat others or hold no parameters.
    Copies,
    Other,
}

impl Part {
    /// The part that the tensor of this [canonical](qformer::params::names::canonical) name is of.
    pub(super) fn of(name: Option<&str>) -> Self {
        let Some(name) = name else { return Self::Copies };
        let starts = |prefix| name.starts_with(prefix);
        if let Some(in_layer) = name.strip_prefix("qformer.encoder.layer.") {
            return Self::of_layer(in_layer);
        }
        match name {
            "query_tokens" => Self::QueryTokens,
            "temp" => Self::Temperature,
            "itm_scale" | "itm_bias" => Self::SimilarityLogit,
            _ if starts("vision_model.post_layernorm.") => Self::ImageNorm,
            _ if starts("vision_model.") => Self::ImageEncoder,
            _ if starts("embeddings.") => Self::TextEmbeddings,
            _ if starts("qformer.layernorm.") => Self::EmbeddingNorm,
            _ if starts("vision_projection.") || starts("text_projection.") || starts("itm_head.") => {
                Self::RetrievalHeads
            }
            _ if starts("cls.predictions.") => Self::LanguageModellingHead,
            _ if starts("language_projection.") => Self::LanguageProjection,
            _ if starts("language_model.") => Self::LanguageModel,
            _ => Self::Other,
        }
    }

    /// The part of a tensor called `<layer>.` and then so.
    fn of_layer(name: &str) -> Self {
        let module = name.split('.').nth(1);
        match module {
            Some("attention") => Self::SelfAttention,
            Some("crossattention") => Self::CrossAttention,
            Some("intermediate_query" | "output_query") => Self::QueryFeedForward,
            Some("intermediate" | "output") => Self::TextFeedForward,
            _ => Self::Other,
        }
    }

    /// Whether a checkpoint may hold it though nothing here reads it.
    pub(super) fn is_extra(self) -> bool {
        matches!(
            self,
            Self::LanguageModellingHead
                | Self::Temperature
                | Self::SimilarityLogit
                | Self::LanguageProjection
                | Self::LanguageModel
        )
    }

    /// What it is called.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::ImageEncoder => "image encoder",
            Self::ImageNorm => "image encoder's last norm",
            Self::QueryTokens => "query tokens",
            Self::TextEmbeddings => "text embeddings",
            Self::EmbeddingNorm => "embeddings' norm",
            Self::SelfAttention => "self-attention",
            Self::CrossAttention => "cross-attention",
            Self::QueryFeedForward => "feed-forward, queries",
            Self::TextFeedForward => "feed-forward, text",
            Self::RetrievalHeads => "retrieval heads",
            Self::LanguageModellingHead => "language-modelling head",
            Self::Temperature => "temperature",
            Self::SimilarityLogit => "scale of matching by cosines",
            Self::LanguageProjection => "language projection",
            Self::LanguageModel => "language model",
            Self::Copies => "copies and buffers",
            Self::Other => "other",
        }
    }
}
