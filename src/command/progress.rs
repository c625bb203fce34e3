//! Progress bars on a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts rows. Draws nothing where standard error is no terminal.
pub(super) fn bar_of_rows(length: u64) -> ProgressBar {
    bar_like("{bar:30} {percent:>3}%  {human_pos} rows  {per_sec}  {eta} left  {msg}", length)
}

/// A bar that counts bytes. Draws nothing where standard error is no terminal.
pub(super) fn bar_of_bytes(length: u64) -> ProgressBar {
    bar_like("{bar:30} {percent:>3}%  {binary_bytes}  {binary_bytes_per_sec}  {eta} left", length)
}

/// Counts manifests, of which nobody knows how many there are. Draws nothing where standard error is no terminal.
pub(super) fn bar_of_manifests() -> ProgressBar {
    let style = ProgressStyle::with_template("{human_pos} manifests  {per_sec}").expect("the template is a constant");
    ProgressBar::no_length().with_style(style)
}

fn bar_like(template: &str, length: u64) -> ProgressBar {
    ProgressBar::new(length).with_style(ProgressStyle::with_template(template).expect("the template is a constant"))
}
