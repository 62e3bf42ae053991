//! The subcommands: a file or a folder each.

pub(crate) mod answer;
pub(crate) mod attention;
pub(crate) mod caption;
pub(crate) mod chat;
pub(crate) mod demo;
pub(crate) mod embed;
pub(crate) mod encode;
pub(crate) mod evaluate;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod score;
pub(crate) mod train;
