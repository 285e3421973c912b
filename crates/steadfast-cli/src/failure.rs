//! The one error type of the binary: a code, one sentence, and optionally a hint.
//!
//! Library errors are turned into it where they are met, because only there it is known what the person asked for.
//! It crosses the API as JSON and comes out of the client unchanged. The codes are in [`crate::codes`].

use crate::codes::Code;

/// Something was refused or failed; nothing is changed by a refused request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which kind.
    pub code: Code,
    /// One sentence (or one per problem, a line each): what was wrong, where, and what would be right.
    pub message: String,
}

impl Failure {
    /// A failure of this kind; `message` is one sentence for people.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

/// A file could not be read or written; names it.
pub fn disk(what: &str, path: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::DiskFailed, format!("can't {what} {}: {error}", path.display()))
}

/// The known word nearest to `word`, when one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// `, did you mean "x"?` or nothing.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |candidate| format!("; did you mean \"{candidate}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_word_is_offered_and_nothing_far_away() {
        assert_eq!(nearest("adress", ["address", "name"]), Some("address"));
        assert_eq!(nearest("zzz", ["address", "name"]), None);
        assert_eq!(nearest("alhpa", ["alpha", "beta"]), Some("alpha"));
    }
}
