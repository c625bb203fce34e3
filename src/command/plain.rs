//! Makes names that other users chose safe to print on a terminal.

/// Escapes the characters that a terminal interprets or doesn't show: control characters, direction marks, and
/// characters without width.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|mark| if is_invisible(mark) { mark.escape_default().to_string() } else { mark.to_string() })
        .collect()
}

fn is_invisible(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}
