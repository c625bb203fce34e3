//! Names that others chose, as they may be printed.

/// A text without what a terminal obeys and doesn't show: control characters, and marks that turn the direction of the letters behind them
/// or have no width. Each stands there by its number.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|mark| if is_obeyed(mark) { mark.escape_default().to_string() } else { mark.to_string() })
        .collect()
}

/// Tells the user something, on standard error.
pub(super) fn tell(text: &str) {
    eprintln!("cdc-export: {}", plain(text));
}

fn is_obeyed(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}
