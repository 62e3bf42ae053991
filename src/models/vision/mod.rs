//! Images: from files to the pixel values the image encoder takes.

mod decode;
pub mod encoder;
pub mod identity;
pub mod image;
mod jpeg;
mod resize;
mod rgb;
mod vit;
