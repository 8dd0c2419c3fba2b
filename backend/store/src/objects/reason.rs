use std::{error::Error, io::ErrorKind};

/// Longest answer of a server that is repeated, in characters.
const LONGEST: usize = 300;

/// What went wrong, in one line for people. The library's own messages are chains of layers around a piece of XML.
pub(super) fn reason(error: &object_store::Error) -> (ErrorKind, String) {
    use object_store::Error as E;
    let text = error.to_string();
    let code = between(&text, "<Code>", "</Code>").unwrap_or_default();
    let refused = |more: &str| {
        let reason = format!("no right to do this{more}; look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
        (ErrorKind::PermissionDenied, reason)
    };
    match (code, error) {
        ("NoSuchBucket", _) => (ErrorKind::NotFound, "there is no such bucket".to_owned()),
        ("AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken", _) => {
            refused(&format!(" ({code})"))
        }
        (_, E::PermissionDenied { .. } | E::Unauthenticated { .. }) => refused(""),
        (_, E::NotFound { .. }) => (ErrorKind::NotFound, "there is no such object".to_owned()),
        (_, E::Precondition { .. }) => {
            (ErrorKind::InvalidData, "the object has changed since it was opened; open it again".to_owned())
        }
        _ => (ErrorKind::Other, one_line(&deepest(error))),
    }
}

fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

/// The cause at the end of the chain.
fn deepest(error: &object_store::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error as the library nests them.
    #[derive(Debug, thiserror::Error)]
    #[error("Error performing request: {source}")]
    struct Layer {
        source: std::io::Error,
    }

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: Box::new(Layer { source: std::io::Error::other(text) }) }
    }

    #[test]
    fn what_servers_say_becomes_one_line() {
        let answer = |code: &str| format!("404 Not Found: <?xml version=\"1.0\"?>\n<Error><Code>{code}</Code></Error>");
        assert_eq!(reason(&generic(&answer("NoSuchBucket"))).1, "there is no such bucket");
        let (kind, refused) = reason(&generic(&answer("InvalidAccessKeyId")));
        assert!(refused.starts_with("no right to do this (InvalidAccessKeyId)"), "{refused}");
        assert_eq!(kind, ErrorKind::PermissionDenied);
        let missing = object_store::Error::NotFound { path: "a".into(), source: answer("NoSuchKey").into() };
        assert_eq!(reason(&missing).1, "there is no such object");
        assert_eq!(reason(&generic("Connection\n refused")).1, "Connection refused");
        assert_eq!(reason(&generic(&"x".repeat(1000))).1.len(), LONGEST);
    }
}
