//! From text to a filter, by recursive descent: it decides the grammar and the words of its errors.
//!
//! `or` binds loosest, then `and`, then `not`; a comparison is a name, an operator and a literal. A parser library would
//! save some lines and lose the sentence that says what was expected where. It must never recurse deeper than
//! [`DEPTH_MAX`] nor read more than [`TEXT_BYTES_MAX`].

use super::{
    Amount, Comparison, DEPTH_MAX, Dimension, Expression, FilterError, Literal, Meaning, Operator, Place,
    Scalar, TEXT_BYTES_MAX, Test,
};

/// The expression of a text; `None` for one that is blank.
pub(super) fn parse(text: &str) -> Result<Option<Expression>, FilterError> {
    if text.len() > TEXT_BYTES_MAX {
        let wrong = format!("the filter has {} bytes; at most {TEXT_BYTES_MAX} are possible", text.len());
        return Err(FilterError { text: String::new(), at: 0, wrong });
    }
    let mut parser = Parser { text, at: 0 };
    parser.skip_space();
    if parser.rest().is_empty() {
        return Ok(None);
    }
    let expression = parser.any(0)?;
    if !parser.rest().is_empty() {
        return Err(parser.expected("\"and\", \"or\" or the end"));
    }
    Ok(Some(expression))
}

/// Whether a text can stand without quotes.
pub(super) fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_bare_letter) && !is_keyword(text)
}

/// What a text without quotes is.
pub(super) fn meaning(text: &str) -> Meaning {
    match text {
        "true" => Meaning::Flag(true),
        "false" => Meaning::Flag(false),
        _ => amount(text).map_or(Meaning::Text, Meaning::Amount),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn any(&mut self, depth: usize) -> Result<Expression, FilterError> {
        let mut parts = vec![self.all(depth)?];
        while self.take_word("or") {
            parts.push(self.all(depth)?);
        }
        Ok(list(parts, Expression::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Expression, FilterError> {
        let mut parts = vec![self.one(depth)?];
        while self.take_word("and") {
            parts.push(self.one(depth)?);
        }
        Ok(list(parts, Expression::All))
    }

    fn one(&mut self, depth: usize) -> Result<Expression, FilterError> {
        if depth > DEPTH_MAX {
            return Err(self.wrong(format!("parentheses and \"not\" are nested deeper than {DEPTH_MAX}")));
        }
        if self.take_word("not") {
            return Ok(Expression::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.take("(") {
            let inside = self.any(depth + 1)?;
            if !self.take(")") {
                return Err(self.expected("\"and\", \"or\" or \")\""));
            }
            return Ok(inside);
        }
        self.comparison().map(Expression::Compare)
    }

    fn comparison(&mut self) -> Result<Comparison, FilterError> {
        let at = Place(self.at);
        let name = self.peek_bare();
        if name.is_empty() || is_keyword(name) {
            return Err(self.expected("a field, as in percent>90, \"not\" or \"(\""));
        }
        if !is_name(name) {
            return Err(self.wrong(format!(
                "{name:?} is no field's name; a comparison begins with one, as in percent>90, and names begin with a small letter"
            )));
        }
        self.advance(name.len());
        if self.take_word("in") {
            return Ok(Comparison { name: name.to_owned(), at, test: Test::In(self.literals()?) });
        }
        let Some(operator) = self.operator() else {
            return Err(self.expected(&format!("one of = != < <= > >= ~ in after {name:?}")));
        };
        let literal = self.literal(operator.sign())?;
        Ok(Comparison { name: name.to_owned(), at, test: Test::Is(operator, literal) })
    }

    fn operator(&mut self) -> Option<Operator> {
        let signs = [
            ("!=", Operator::Unequal),
            ("<=", Operator::AtMost),
            (">=", Operator::AtLeast),
            ("<", Operator::Below),
            (">", Operator::Above),
            ("~", Operator::Like),
            // Somebody used to programming writes two.
            ("==", Operator::Equal),
            ("=", Operator::Equal),
        ];
        signs.into_iter().find(|(sign, _)| self.take(sign)).map(|(_, operator)| operator)
    }

    fn literals(&mut self) -> Result<Vec<Literal>, FilterError> {
        if !self.take("(") {
            return Err(self.expected("\"(\" after \"in\", as in type in (disk.usage, file.change)"));
        }
        let mut literals = vec![self.literal("(")?];
        while self.take(",") {
            literals.push(self.literal(",")?);
        }
        if !self.take(")") {
            return Err(self.expected("\",\" or \")\""));
        }
        Ok(literals)
    }

    fn literal(&mut self, after: &str) -> Result<Literal, FilterError> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let text = self.peek_bare();
        if text.is_empty() || is_keyword(text) {
            return Err(self.expected(&format!("a value after {after:?}")));
        }
        let literal = Literal::bare(text, Place(self.at));
        self.advance(text.len());
        Ok(literal)
    }

    fn quoted(&mut self) -> Result<Literal, FilterError> {
        let at = Place(self.at);
        let mut text = String::new();
        let mut letters = self.rest().char_indices().skip(1);
        while let Some((start, letter)) = letters.next() {
            match letter {
                '"' => {
                    self.advance(start + 1);
                    return Ok(Literal::quoted(text, at));
                }
                '\\' => match letters.next() {
                    Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                    Some(_) | None => {
                        self.at += start;
                        return Err(self.wrong("after \"\\\" only \\\" and \\\\ are possible".to_owned()));
                    }
                },
                plain => text.push(plain),
            }
        }
        Err(self.wrong("this quote is not closed; put \" at the end of the text".to_owned()))
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.skip_space();
    }

    fn take(&mut self, sign: &str) -> bool {
        let is_there = self.rest().starts_with(sign);
        if is_there {
            self.advance(sign.len());
        }
        is_there
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek_bare();
        let is_there = found.eq_ignore_ascii_case(word);
        if is_there {
            self.advance(found.len());
        }
        is_there
    }

    fn peek_bare(&self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|letter| !is_bare_letter(letter)).unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    }

    fn expected(&self, what: &str) -> FilterError {
        let found = match (self.peek_bare(), self.rest().chars().next()) {
            (_, None) => "the filter ends here".to_owned(),
            ("", Some('&')) => "\"&\" was found; write \"and\"".to_owned(),
            ("", Some('|')) => "\"|\" was found; write \"or\"".to_owned(),
            ("", Some('!')) => "\"!\" was found; write \"not\", or != between a field and a value".to_owned(),
            ("", Some('\'')) => "a single quote was found; texts stand in \"double quotes\"".to_owned(),
            ("", Some(letter)) => format!("{letter:?} was found"),
            (word, Some(_)) => format!("{:?} was found", word.chars().take(40).collect::<String>()),
        };
        self.wrong(format!("expected {what}, and {found}"))
    }

    fn wrong(&self, wrong: String) -> FilterError {
        FilterError { text: self.text.to_owned(), at: self.at, wrong }
    }
}

fn list(mut parts: Vec<Expression>, make: impl Fn(Vec<Expression>) -> Expression) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            make(parts)
        }
        None => make(parts),
    }
}

fn is_bare_letter(letter: char) -> bool {
    !letter.is_whitespace() && !letter.is_control() && !"\"'(),=!<>~&|\\".contains(letter)
}

fn is_keyword(text: &str) -> bool {
    ["and", "or", "not", "in"].iter().any(|keyword| text.eq_ignore_ascii_case(keyword))
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.'))
}

/// A unit's name, what it counts, and how many of the dimension's own unit it is.
const UNITS: [(&str, Dimension, i128); 19] = [
    ("", Dimension::None, 1),
    ("%", Dimension::Percent, 1),
    ("B", Dimension::Bytes, 1),
    ("kB", Dimension::Bytes, 1_000),
    ("MB", Dimension::Bytes, 1_000_000),
    ("GB", Dimension::Bytes, 1_000_000_000),
    ("TB", Dimension::Bytes, 1_000_000_000_000),
    ("KiB", Dimension::Bytes, 1 << 10),
    ("MiB", Dimension::Bytes, 1 << 20),
    ("GiB", Dimension::Bytes, 1 << 30),
    ("TiB", Dimension::Bytes, 1 << 40),
    ("ns", Dimension::Time, 1),
    ("us", Dimension::Time, 1_000),
    ("ms", Dimension::Time, 1_000_000),
    ("s", Dimension::Time, 1_000_000_000),
    ("m", Dimension::Time, 60_000_000_000),
    ("min", Dimension::Time, 60_000_000_000),
    ("h", Dimension::Time, 3_600_000_000_000),
    ("d", Dimension::Time, 86_400_000_000_000),
];

/// `90`, `-1.5`, `90%`, `10MiB`, `5s`; nothing that is written otherwise, so that an address stays a text.
fn amount(text: &str) -> Option<Amount> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let digits = unsigned.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(unsigned.len());
    let (whole, rest) = unsigned.split_at_checked(digits)?;
    let (fraction, unit) = match rest.strip_prefix('.') {
        Some(rest) => {
            let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
            let (fraction, unit) = rest.split_at_checked(digits)?;
            (Some(fraction), unit)
        }
        None => (None, rest),
    };
    if whole.is_empty() || fraction.is_some_and(str::is_empty) || whole.len() > 18 {
        return None;
    }
    let (_, dimension, factor) = UNITS.into_iter().find(|(name, _, _)| *name == unit)?;
    let sign: i128 = if unsigned.len() < text.len() { -1 } else { 1 };
    let whole: i128 = whole.parse().ok()?;
    let value = match fraction {
        None => Scalar::Whole(sign * whole * factor),
        Some(fraction) => {
            let number: f64 = format!("{whole}.{fraction}").parse().ok()?;
            Scalar::Real(sign as f64 * number * factor as f64)
        }
    };
    Some(Amount { value, dimension })
}
