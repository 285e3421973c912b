//! `steadfast explain`: what an error code or a verdict means and what to do.

use super::Context;
use crate::codes::{self, Code};
use crate::failure::Failure;
use crate::verdicts::{self, Page};

/// Explain an error code or a verdict: causes, evidence and what to do
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast explain SF-0013\n  steadfast explain link cut\n  steadfast explain network down at a node\n  steadfast explain --all"
)]
pub struct Args {
    /// The code, or the class of a verdict
    #[arg(required_unless_present = "all", value_name = "CODE or CLASS")]
    what: Vec<String>,
    /// List all codes and classes
    #[arg(long)]
    all: bool,
}

/// What can be explained.
enum Subject {
    Code(Code),
    Class(&'static Page),
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let chosen: Vec<Subject> = if args.all {
        let codes = Code::ALL.iter().map(|code| Subject::Code(*code));
        codes.chain(verdicts::PAGES.iter().map(Subject::Class)).collect()
    } else {
        // The words of a class need no quotation marks.
        vec![subject(&args.what.join(" "))?]
    };
    let values: Vec<serde_json::Value> = chosen.iter().map(value).collect();
    context.output.data(&values, |_| {
        if args.all {
            crate::output::table(["CODE OR CLASS", "EXIT", "MEANING"], chosen.iter().map(row))
        } else {
            chosen.iter().map(page).collect::<Vec<_>>().join("\n").trim_end().to_owned()
        }
    });
    Ok(())
}

fn subject(text: &str) -> Result<Subject, Failure> {
    if let Ok(code) = text.parse() {
        return Ok(Subject::Code(code));
    }
    let looks_like_a_code = text.to_ascii_uppercase().starts_with("SF");
    match text.parse::<&'static Page>() {
        Ok(page) => Ok(Subject::Class(page)),
        Err(error) if !looks_like_a_code => Err(Failure::new(Code::CodeUnknown, error.to_string())),
        Err(_) => {
            let message = format!("{text:?} is not an error code; codes look like SF-0013");
            Err(Failure::new(Code::CodeUnknown, message))
        }
    }
}

fn value(subject: &Subject) -> serde_json::Value {
    match subject {
        Subject::Code(code) => {
            serde_json::json!({"code": code.to_string(), "title": code.title(), "exit": code.exit().number(),
                "causes": code.causes(), "remedy": code.remedy()})
        }
        Subject::Class(page) => {
            serde_json::json!({"class": page.name, "words": page.words, "title": page.meaning, "evidence": page.evidence,
                "follows": page.follows, "remedy": page.remedy})
        }
    }
}

fn row(subject: &Subject) -> [String; 3] {
    match subject {
        Subject::Code(code) => [code.to_string(), code.exit().number().to_string(), code.title().to_owned()],
        Subject::Class(page) => [page.words.to_owned(), String::new(), page.meaning.to_owned()],
    }
}

fn page(subject: &Subject) -> String {
    match subject {
        Subject::Code(code) => codes::page(*code),
        Subject::Class(page) => page.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_classes_are_both_known_and_a_slip_gets_a_hint() {
        assert!(matches!(subject("SF-0013"), Ok(Subject::Code(Code::NoQuorum))));
        assert!(matches!(subject("link-cut"), Ok(Subject::Class(page)) if page.name == "link-cut"));
        let error = |text| subject(text).err().map(|failure| failure.message).unwrap_or_default();
        assert!(error("link-cot").contains("did you mean \"link-cut\""));
        assert!(error("SF-9999").contains("SF-0013"));
    }
}
