//! Heads of HTTP/1.1 that leave nothing to interpret, read in place. Each line ends with CR LF, each name is made of letters,
//! digits and dashes, each value of printable ASCII; there are no folded lines. Nearly all heads are like this. The others
//! are *odd*: somebody who knows all of HTTP has to look at them.

/// More lines than this make a head odd.
const FIELDS: usize = 64;
/// Room for as many as nearly all heads have.
const USUAL: usize = 16;

/// Where the parts of a header line stand.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: (u16, u16),
    value: (u16, u16),
}

/// Where the parts of a head stand, in the bytes that it was read from.
#[derive(Debug)]
pub struct Head {
    length: usize,
    first: usize,
    /// On the heap: heads are handed on several times, and copying this each time costs more.
    fields: Vec<Field>,
}

/// What the bytes begin with.
#[derive(Debug)]
pub enum Parsed {
    /// The start of a head, maybe.
    Partial,
    /// No head, or one that is not plain.
    Odd,
    /// A plain head.
    Whole(Head),
}

impl Head {
    /// Reads a head; names are brought into lower case where they stand.
    pub fn parse(bytes: &mut [u8]) -> Parsed {
        let Some(end) = memchr::memchr(b'\n', bytes) else { return partial(bytes) };
        let Some(first) = end.checked_sub(1).filter(|first| *first > 0 && bytes[*first] == b'\r') else {
            return Parsed::Odd;
        };
        let mut head = Self { length: 0, first, fields: Vec::with_capacity(USUAL) };
        let mut at = end + 1;
        loop {
            let Some(length) = memchr::memchr(b'\n', &bytes[at..]) else { return partial(bytes) };
            let Some((b'\r', line)) = bytes[at..at + length].split_last_mut() else { return Parsed::Odd };
            if line.is_empty() {
                head.length = at + 2;
                // Nothing but text, and the ends of the lines.
                let controls = bytes[..head.length].iter().map(|byte| u16::from(!is_text(*byte))).sum::<u16>();
                let ends = 2 * (head.count() + 2);
                return if usize::from(controls) == ends { Parsed::Whole(head) } else { Parsed::Odd };
            }
            let Some(field) = field(line, at) else { return Parsed::Odd };
            if head.count() == FIELDS {
                return Parsed::Odd;
            }
            head.fields.push(field);
            at += length + 1;
        }
    }

    /// Bytes of the head, the empty line included.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Header lines.
    #[must_use]
    pub fn count(&self) -> usize {
        self.fields.len()
    }

    /// The request line or status line, as it came. `bytes` are those that the head was read from.
    #[must_use]
    pub fn first<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[..self.first]
    }

    /// The header lines: names in lower case, values without the white space around them.
    pub fn fields<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let part = |(start, end): (u16, u16)| &bytes[usize::from(start)..usize::from(end)];
        self.fields.iter().map(move |field| (part(field.name), part(field.value)))
    }
}

fn partial(bytes: &[u8]) -> Parsed {
    if u16::try_from(bytes.len()).is_ok() { Parsed::Partial } else { Parsed::Odd }
}

/// A header line that stands at `at`.
fn field(line: &mut [u8], at: usize) -> Option<Field> {
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = line.split_at_mut(colon);
    let mut named = !name.is_empty();
    for byte in name {
        let lower = IN_NAME[usize::from(*byte)];
        named &= lower != 0;
        // What is odd is read again by somebody else, as it came.
        *byte = if lower == 0 { *byte } else { lower };
    }
    if !named {
        return None;
    }
    let start = 1 + value[1..].iter().take_while(|byte| **byte == b' ').count();
    let end = value.iter().rposition(|byte| *byte != b' ').map_or(start, |last| (last + 1).max(start));
    let place = |start: usize, end: usize| Some((u16::try_from(at + start).ok()?, u16::try_from(at + end).ok()?));
    Some(Field { name: place(0, colon)?, value: place(colon + start, colon + end)? })
}

/// Printable ASCII.
fn is_text(byte: u8) -> bool {
    byte.wrapping_sub(b' ') <= b'~' - b' '
}

/// For each byte that names are made of here, its lower case; 0 for the others.
const IN_NAME: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// First line, header lines, length.
    type Read = (String, Vec<(String, String)>, usize);

    fn read(text: &str) -> Option<Read> {
        let mut bytes = text.as_bytes().to_vec();
        let Parsed::Whole(head) = Head::parse(&mut bytes) else { return None };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let fields = head.fields(&bytes).map(|(name, value)| (text(name), text(value))).collect();
        Some((text(head.first(&bytes)), fields, head.length()))
    }

    #[test]
    fn a_plain_head_is_taken_apart() {
        let text = "GET /a HTTP/1.1\r\nHost: a\r\nX-One:  b c  \r\nempty:\r\nblank:   \r\nx:y:z\r\n\r\nbody";
        let (first, fields, length) = read(text).unwrap();
        assert_eq!((&*first, length), ("GET /a HTTP/1.1", text.len() - 4));
        let fields: Vec<_> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(fields, [("host", "a"), ("x-one", "b c"), ("empty", ""), ("blank", ""), ("x", "y:z")]);
        assert_eq!(read("GET / HTTP/1.1\r\n\r\n").unwrap().1, []);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_odd() {
        for text in [
            "\r\nGET / HTTP/1.1\r\n\r\n",
            "\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\n\r\n",
            "GET / HTTP/1.1\r\na: b\n\r\n",
            "GET / HTTP/1.1\r\na: b\r\n\n",
            "GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\na: b\r\n\tc: d\r\n\r\n",
            "GET / HTTP/1.1\r\na : b\r\n\r\n",
            "GET / HTTP/1.1\r\na_b: c\r\n\r\n",
            "GET / HTTP/1.1\r\n: c\r\n\r\n",
            "GET / HTTP/1.1\r\nabc\r\n\r\n",
            "GET / HTTP/1.1\r\na: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\na: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\na: b\tc\r\n\r\n",
            "GET /\x01 HTTP/1.1\r\na: b\r\n\r\n",
            "GET / HTTP/1.1\r\na: \u{fc}\r\n\r\n",
        ] {
            assert!(matches!(Head::parse(&mut text.as_bytes().to_vec()), Parsed::Odd), "{text:?}");
        }
        let lines = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count)).into_bytes();
        assert!(matches!(Head::parse(&mut lines(FIELDS)), Parsed::Whole(head) if head.count() == FIELDS));
        assert!(matches!(Head::parse(&mut lines(FIELDS + 1)), Parsed::Odd));
        let long = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(70_000));
        assert!(matches!(Head::parse(&mut long.into_bytes()), Parsed::Odd));
    }

    #[test]
    fn what_is_odd_stays_as_it_came_but_for_the_case_of_names() {
        let text = b"GET /A HTTP/1.1\r\nHost: A\r\nX_Y: Z\r\nA B: \xfc\r\n\r\n";
        let mut bytes = text.to_vec();
        assert!(matches!(Head::parse(&mut bytes), Parsed::Odd));
        assert!(bytes.eq_ignore_ascii_case(text));
    }

    #[test]
    fn a_head_is_whole_with_its_last_byte() {
        let text = b"GET /a HTTP/1.1\r\nHost: a\r\nX-One: b\r\n\r\n";
        for end in 0..text.len() {
            assert!(matches!(Head::parse(&mut text[..end].to_vec()), Parsed::Partial), "{end}");
        }
        assert!(matches!(Head::parse(&mut [b'a'; 70_000]), Parsed::Odd));
    }
}
