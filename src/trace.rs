//! The trace context of an export, in the form of the W3C Trace Context standard.

use std::fmt;
use std::str::FromStr;

/// A trace context, as in the header `traceparent` (<https://www.w3.org/TR/trace-context/>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The id of the trace. It is never 0.
    pub trace: u128,
    /// The id of the parent span. It is never 0.
    pub span: u64,
    /// Flags. Bit 0: the caller records the trace. Bit 1: the id of the trace is random.
    pub flags: u8,
}

/// The flags that the standard defines. It requires that other flags are not propagated.
const KNOWN_FLAGS: u8 = 0b11;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct NoTraceParent;

impl FromStr for TraceParent {
    type Err = NoTraceParent;

    /// Parses a `traceparent`. Ignores additional fields of later versions, as the standard requires.
    fn from_str(text: &str) -> Result<TraceParent, NoTraceParent> {
        let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.split('-');
        let mut part =
            |digits: usize| parts.next().filter(|part| part.len() == digits && is_hex(part)).ok_or(NoTraceParent);
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return Err(NoTraceParent);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| NoTraceParent)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| NoTraceParent)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| NoTraceParent)? & KNOWN_FLAGS;
        if trace == 0 || span == 0 { Err(NoTraceParent) } else { Ok(TraceParent { trace, span, flags }) }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_round_trips() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let place: TraceParent = text.parse().unwrap();
        assert_eq!((place.span, place.flags), (0x00f0_67aa_0ba9_02b7, 1));
        assert_eq!(place.to_string(), text);
        let flags = format!("{}ff", &text[..53]).parse::<TraceParent>().unwrap();
        assert_eq!(flags.to_string(), format!("{}03", &text[..53]));
        let later = format!("cc{}-what-the-future", &text[2..]);
        assert_eq!(later.parse(), Ok(place));
    }

    #[test]
    fn invalid_traceparent_is_rejected() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-+0f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(text.parse::<TraceParent>(), Err(NoTraceParent), "{text}");
        }
    }
}
