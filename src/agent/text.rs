//! Text of bytes that come in pieces, for every kind of agent.
//!
//! Owns the bytes of a character that was cut in two; it must not know where they come from. Real programs cut a
//! character between two writes, and (JavaScript, Java, Python) an emoji between its two surrogate halves: both are put
//! together again. What is no text costs that character alone.

use std::str::from_utf8;

/// Makes text of bytes that come in pieces: a character cut in two waits for its rest, what is none is replaced. The
/// halves of a surrogate pair are taken in the form that WTF-8 gives them.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Utf8 {
    begun: Vec<u8>,
}

impl Utf8 {
    /// Takes in a piece and returns the text that is whole.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.begun.is_empty()
            && let Ok(whole) = from_utf8(bytes)
        {
            return whole.to_string();
        }
        self.begun.extend_from_slice(bytes);
        let (text, rest) = take(&self.begun, false);
        self.begun.drain(..self.begun.len() - rest);
        text
    }

    /// How many bytes wait for the rest of their character.
    pub const fn pending(&self) -> usize {
        self.begun.len()
    }

    /// What was begun and will never be whole.
    pub fn finish(&mut self) -> String {
        take(&std::mem::take(&mut self.begun), true).0
    }
}

/// All of it as text.
pub fn lossy(bytes: &[u8]) -> String {
    take(bytes, true).0
}

/// The text of bytes, and how many bytes at their end may still become a character. With `last` none may.
fn take(bytes: &[u8], last: bool) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        let error = match from_utf8(rest) {
            Ok(whole) => {
                text.push_str(whole);
                return (text, 0);
            }
            Err(error) => error,
        };
        let (whole, bad) = rest.split_at(error.valid_up_to());
        text.push_str(from_utf8(whole).unwrap_or_default());
        let (character, used) = match (half(bad), error.error_len()) {
            (Half::High(high), _) => match half(&bad[3..]) {
                Half::Low(low) => (pair(high, low), 6),
                Half::Begun if !last => return (text, bad.len()),
                _ => (char::REPLACEMENT_CHARACTER, 3),
            },
            (Half::Low(_), _) => (char::REPLACEMENT_CHARACTER, 3),
            (Half::Begun, _) | (Half::No, None) if !last => return (text, bad.len()),
            (Half::Begun, _) | (Half::No, None) => (char::REPLACEMENT_CHARACTER, bad.len()),
            (Half::No, Some(n)) => (char::REPLACEMENT_CHARACTER, n),
        };
        text.push(character);
        rest = &bad[used..];
    }
}

/// What bytes begin with.
enum Half {
    High(u32),
    Low(u32),
    /// It may become one: nothing is there yet, or one or two bytes of it.
    Begun,
    No,
}

fn half(bytes: &[u8]) -> Half {
    match bytes {
        [] | [0xED] | [0xED, 0xA0..=0xBF] => Half::Begun,
        [0xED, second @ 0xA0..=0xBF, third @ 0x80..=0xBF, ..] => {
            let bits = (u32::from(*second & 0x0F) << 6) | u32::from(*third & 0x3F);
            if *second < 0xB0 { Half::High(bits) } else { Half::Low(bits) }
        }
        _ => Half::No,
    }
}

fn pair(high: u32, low: u32) -> char {
    char::from_u32(0x1_0000 + (high << 10) + low).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn characters_cut_in_pieces_come_out_whole() {
        let text = "für 10 €, 🐎";
        for size in 1..5 {
            let mut utf8 = Utf8::default();
            let joined: String = text.as_bytes().chunks(size).map(|piece| utf8.push(piece)).collect();
            assert_eq!(joined + &utf8.finish(), text, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_text_is_replaced_once_for_each_fault() {
        let mut utf8 = Utf8::default();
        assert_eq!(utf8.push(b"a\xff\xfeb\xe2\x82"), "a\u{fffd}\u{fffd}b");
        assert_eq!(utf8.push(b"c"), "\u{fffd}c", "the begun character was none");
        assert_eq!(utf8.push(b"\xe2\x82") + &utf8.finish(), "\u{fffd}");
    }

    #[test]
    fn the_halves_of_an_emoji_are_joined_and_a_lone_one_costs_itself() {
        let (high, low) = (b"\xed\xa0\xbd", b"\xed\xb8\x80");
        let whole = [&b"a"[..], high, low, b"b"].concat();
        for size in 1..9 {
            let mut utf8 = Utf8::default();
            let joined: String = whole.chunks(size).map(|piece| utf8.push(piece)).collect();
            assert_eq!(joined + &utf8.finish(), "a😀b", "in pieces of {size}");
        }
        for (bytes, expected) in [
            ([&b"x"[..], high].concat(), "x\u{fffd}"),
            ([&b"x"[..], low, b"y"].concat(), "x\u{fffd}y"),
            ([&b"x"[..], high, b"y"].concat(), "x\u{fffd}y"),
            ([&b"x"[..], high, high, low].concat(), "x\u{fffd}😀"),
            ([&b"x"[..], low, high].concat(), "x\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(lossy(&bytes), expected, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(bytes in prop::collection::vec(prop_oneof![Just(0xED_u8), Just(0xA0), Just(0xBD), Just(0xB8), Just(0x80), any::<u8>()], 0..24), size in 1_usize..6) {
            let mut utf8 = Utf8::default();
            let joined: String = bytes.chunks(size).map(|piece| utf8.push(piece)).collect();
            prop_assert_eq!(joined + &utf8.finish(), lossy(&bytes));
        }

        #[test]
        fn text_is_left_as_it_is(text in ".{0,20}") {
            prop_assert_eq!(lossy(text.as_bytes()), text);
        }
    }
}
