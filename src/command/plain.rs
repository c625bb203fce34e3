//! Makes names that others chose safe to print.

/// Escapes the characters that a terminal obeys and doesn't show: control characters, marks of direction, and marks
/// without width.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|mark| if is_obeyed(mark) { mark.escape_default().to_string() } else { mark.to_string() })
        .collect()
}

fn is_obeyed(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}
