//! The name and the password in an address, which are never shown.

/// An address as it may be shown: without the name and the password in it.
#[must_use]
pub fn without_login(url: &str) -> String {
    match login(url) {
        Some(login) => url.replacen(&format!("{login}@"), "", 1),
        None => url.to_string(),
    }
}

/// The name and the password in an address.
fn login(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    authority.rsplit_once('@').map(|(login, _)| login)
}

/// A text that may contain an address or its login, as it may be shown.
#[must_use]
pub fn scrub(text: &str, url: &str) -> String {
    let Some(login) = login(url) else { return text.to_string() };
    let plain = text.replace(&format!("{login}@"), "");
    match login.split_once(':') {
        Some((_, password)) if !password.is_empty() => plain.replace(password, "…"),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_in_an_address_is_shown_to_nobody() {
        for (url, plain) in [
            ("http://user:s3cret@host:1/v1?x=1", "http://host:1/v1?x=1"),
            ("https://token@host/a@b", "https://host/a@b"),
            ("http://u:p@ss@host", "http://host"),
            ("http://host/v1", "http://host/v1"),
        ] {
            assert_eq!(without_login(url), plain);
            assert_eq!(scrub(&format!("cannot reach {url}: no"), url), format!("cannot reach {plain}: no"));
        }
        let text = scrub("401 for user with s3cret", "http://user:s3cret@host");
        assert_eq!(text, "401 for user with …");
    }
}
