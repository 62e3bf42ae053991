//! Settings that the library names in its messages, by the flags of the command line.

use qformer::Error;

/// An error's message in the words of the command line.
pub(crate) fn message(error: &Error) -> String {
    error.message_with(flag_of)
}

fn flag_of(setting: &str) -> String {
    match setting {
        "beams" => "--num-beams".to_owned(),
        "folder" => "--output".to_owned(),
        "reopen" => "--resume".to_owned(),
        "sequences" => "--num-captions".to_owned(),
        name => format!("--{}", name.replace('_', "-")),
    }
}
