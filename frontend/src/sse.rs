//! Server-sent events out of a byte stream that may be cut anywhere.

/// One event: its name (`message` unless given) and its data lines joined by `\n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    pub event: String,
    pub data: String,
}

/// Collects bytes and gives out whole events (WHATWG HTML, section 9.2.6).
#[derive(Debug, Default)]
pub struct SseParser {
    rest: Vec<u8>,
    event: String,
    data: Vec<String>,
}

impl SseParser {
    /// Takes the next bytes, returns the events they complete. A line ends with LF, CRLF or CR.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some((line, used)) = next_line(&self.rest) {
            let line = String::from_utf8_lossy(line).into_owned();
            self.rest.drain(..used);
            events.extend(self.take_line(&line));
        }
        events
    }

    fn take_line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = std::mem::take(&mut self.data);
            let event = if event.is_empty() { "message".into() } else { event };
            return (!data.is_empty()).then(|| SseEvent { event, data: data.join("\n") });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event = value.into(),
            "data" => self.data.push(value.into()),
            // Comments (an empty field name), `id` and `retry` do not concern a single run.
            _ => {}
        }
        None
    }
}

/// The first whole line and the bytes it takes with its end. A CR at the very end waits: an LF may follow.
fn next_line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
    match (bytes[end], bytes.get(end + 1)) {
        (b'\r', None) => None,
        (b'\r', Some(b'\n')) => Some((&bytes[..end], end + 2)),
        _ => Some((&bytes[..end], end + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": keep-alive\n\nevent: steer\ndata: {\"a\":1}\n\ndata: two\r\ndata:lines é\r\n\r\nid: 3\n\nevent: steer\ndata: half";

    fn expected() -> Vec<SseEvent> {
        vec![
            SseEvent { event: "steer".into(), data: "{\"a\":1}".into() },
            SseEvent { event: "message".into(), data: "two\nlines é".into() },
        ]
    }

    #[test]
    fn whole_events_come_out_and_half_ones_wait() {
        let mut parser = SseParser::default();
        assert_eq!(parser.push(STREAM.as_bytes()), expected());
        assert_eq!(parser.push(b"way\n\n"), vec![SseEvent { event: "steer".into(), data: "halfway".into() }]);
    }

    #[test]
    fn any_cut_gives_the_same_events() {
        for cut in 0..=STREAM.len() {
            let mut parser = SseParser::default();
            let mut events = parser.push(&STREAM.as_bytes()[..cut]);
            events.extend(parser.push(&STREAM.as_bytes()[cut..]));
            assert_eq!(events, expected(), "cut at byte {cut}");
        }
    }
}
