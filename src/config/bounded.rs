//! Files that a user names, and stdin: read up to a bound, because a name may lead to an endless device.

use std::io::{Error, ErrorKind, Read};
use std::path::Path;

/// The longest configuration file, in bytes.
pub const CONFIGURATION: u64 = 4 << 20;
/// The longest file with a secret, in bytes.
const SECRET: u64 = 64 << 10;

/// The whole input, if it has at most `most` bytes.
///
/// # Errors
/// It cannot be read, or is longer.
pub fn take(source: impl Read, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("more than {most} bytes")));
    }
    Ok(bytes)
}

/// A file's bytes, as [`take`].
///
/// # Errors
/// As [`take`].
pub fn read(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    take(std::fs::File::open(path)?, most)
}

/// The secret in a file, without the white space around it.
///
/// # Errors
/// It cannot be read, is too long, no text, or empty. Whoever asks names the file.
pub fn secret(path: &Path) -> std::io::Result<String> {
    let text =
        String::from_utf8(read(path, SECRET)?).map_err(|_| Error::new(ErrorKind::InvalidData, "is not UTF-8 text"))?;
    match text.trim() {
        "" => Err(Error::new(ErrorKind::InvalidData, "it is empty")),
        secret => Ok(secret.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_endless_is_too_long() {
        let zero = Path::new("/dev/zero");
        assert_eq!(read(zero, 1000).unwrap_err().to_string(), "more than 1000 bytes");
        assert_eq!(secret(zero).unwrap_err().to_string(), "more than 65536 bytes");
        assert_eq!(take(&b"1234"[..], 4).unwrap(), b"1234");
        assert_eq!(take(&b"12345"[..], 4).unwrap_err().to_string(), "more than 4 bytes");
    }

    #[test]
    fn a_secret_is_a_text_that_is_not_empty() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let put = |bytes: &[u8]| std::fs::write(file.path(), bytes).unwrap();
        put(b" s3cret\n");
        assert_eq!(secret(file.path()).unwrap(), "s3cret");
        put(b" \n");
        assert_eq!(secret(file.path()).unwrap_err().to_string(), "it is empty");
        put(b"\xff");
        assert_eq!(secret(file.path()).unwrap_err().to_string(), "is not UTF-8 text");
    }
}
