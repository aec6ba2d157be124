//! The arguments of this process, which everybody on the machine may read in `/proc/PID/cmdline`.

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Overwrites the passwords in this process's own arguments, for as long as it lives. Whoever needs
/// them has read the arguments before. What cannot be read or written is left as it is.
pub fn hide_passwords() {
    let _ = overwrite();
}

fn overwrite() -> io::Result<()> {
    let stat = fs::read("/proc/self/stat")?;
    let Some(place) = place(&String::from_utf8_lossy(&stat)) else { return Ok(()) };
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
    let mut arguments = vec![0; usize::try_from(place.end - place.start).unwrap_or_default()];
    memory.read_exact_at(&mut arguments, place.start)?;
    for password in passwords(&arguments) {
        memory.write_all_at(&b"*".repeat(password.len()), place.start + password.start as u64)?;
    }
    Ok(())
}

/// Where the arguments lie, from `/proc/self/stat` (proc(5): `arg_start` and `arg_end`).
fn place(stat: &str) -> Option<Range<u64>> {
    // The program's name may have anything in it; behind it comes the third field.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(48 - 3).map(|field| field.parse().ok());
    let (first, end) = (fields.next()??, fields.next()??);
    (first < end).then_some(first..end)
}

/// Where passwords stand in arguments that end with a zero each.
fn passwords(arguments: &[u8]) -> Vec<Range<usize>> {
    let starts_with = |at: usize, word: &[u8]| {
        arguments[at..].get(..word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word))
    };
    let behind =
        |word: &'static [u8]| (0..arguments.len()).filter(move |at| starts_with(*at, word)).map(|at| at + word.len());
    let addresses = behind(b"://").filter_map(|at| in_address(arguments, at));
    let settings = behind(b"password").filter_map(|at| in_setting(arguments, at));
    addresses.chain(settings).collect()
}

/// In an address, between the first colon and the last `@` of what stands `at` its `//`.
fn in_address(arguments: &[u8], at: usize) -> Option<Range<usize>> {
    let end = find(arguments, at, |byte| byte == b'/' || is_end(byte));
    let host = arguments[at..end].iter().rposition(|byte| *byte == b'@')?;
    let colon = arguments[at..at + host].iter().position(|byte| *byte == b':')?;
    Some(at + colon + 1..at + host)
}

/// In libpq's `password = 'a b'`, or in the query of an address, where that goes on `at` its `=`.
fn in_setting(arguments: &[u8], at: usize) -> Option<Range<usize>> {
    let skip_blanks = |at| find(arguments, at, |byte| byte != b' ');
    let equals = skip_blanks(at);
    if arguments.get(equals) != Some(&b'=') {
        return None;
    }
    let start = skip_blanks(equals + 1);
    let quote = arguments.get(start).copied().filter(|byte| b"'\"".contains(byte));
    let start = start + usize::from(quote.is_some());
    let mut is_escaped = false;
    let end = find(arguments, start, |byte| {
        let is_over = match quote {
            Some(quote) => byte == quote || byte == 0,
            None => byte == b'&' || is_end(byte),
        };
        let is_over = is_over && (byte == 0 || !is_escaped);
        is_escaped = byte == b'\\' && !is_escaped;
        is_over
    });
    Some(start..end)
}

/// The first place from `at` on with such a byte; the end, where there is none.
fn find(bytes: &[u8], at: usize, is: impl FnMut(u8) -> bool) -> usize {
    bytes[at..].iter().copied().position(is).map_or(bytes.len(), |found| at + found)
}

fn is_end(byte: u8) -> bool {
    byte == 0 || byte.is_ascii_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(arguments: &str) -> String {
        let mut bytes = arguments.as_bytes().to_vec();
        for password in passwords(arguments.as_bytes()) {
            bytes[password].fill(b'*');
        }
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn passwords_of_addresses_and_settings_are_found() {
        for (given, left) in [
            ("run\0--store=postgresql://ci:pw@h/d\0x\0", "run\0--store=postgresql://ci:**@h/d\0x\0"),
            ("postgres+x://a:p:w@d@h:5/d?a=b\0", "postgres+x://a:*****@h:5/d?a=b\0"),
            ("http://h:1/x@y sqlite:///a:b@c\0a:b@c", "http://h:1/x@y sqlite:///a:b@c\0a:b@c"),
            ("x://a:\0b@c", "x://a:\0b@c"),
            ("x://h/d?password=pw&sslmode=off\0", "x://h/d?password=**&sslmode=off\0"),
            ("host=h password = 'a\\' b' user=u\0", "host=h password = '*****' user=u\0"),
            ("PGPASSWORD=pw\0password\0=pw", "PGPASSWORD=**\0password\0=pw"),
            ("password=a\\ b c", "password=**** c"),
            ("password='never ends\0next", "password='**********\0next"),
            ("password=", "password="),
            ("://@", "://@"),
        ] {
            assert_eq!(hidden(given), left);
        }
    }

    #[test]
    fn the_place_of_arguments_is_found_behind_a_name_of_any_form() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        assert_eq!(place(&format!("1 (a) (b c) S {}", fields.join(" "))), Some(48..49));
        assert_eq!(place("1 (a) S 0"), None);
    }
}
