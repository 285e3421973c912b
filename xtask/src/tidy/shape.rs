//! Rules on one Rust file: it opens with `//!`, has at most 800 lines of code, and its functions fit a screen.
//!
//! Lines of code are lines that hold something other than a comment; tests at the bottom of a file, and whole files of
//! tests, are not counted, because a long table of cases is no harder to read than a short one.

use super::Source;
use syn::{
    Attribute, ImplItemFn, Item, ItemFn, ItemMod, TraitItemFn,
    spanned::Spanned,
    visit::{self, Visit},
};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

pub(super) fn breaches(sources: &[Source]) -> Vec<String> {
    sources.iter().filter(|source| source.is_rust()).flat_map(file).collect()
}

fn file(source: &Source) -> Vec<String> {
    let Source { path, .. } = source;
    let mut breaches = Vec::new();
    if !source.text().starts_with("//!") {
        breaches.push(format!(
            "{path}:1: open the file with `//!`: what it decides, what it must never do, where to read next"
        ));
    }
    if is_test_file(path) {
        return breaches;
    }
    let Ok(parsed) = syn::parse_file(source.text()) else {
        breaches.push(format!("{path}:1: this is not Rust that can be read; `cargo check` says where"));
        return breaches;
    };
    let lines = lines_of_code(source.text(), &parsed);
    if lines > FILE_LINES_MAX {
        breaches.push(format!(
            "{path}:1: {lines} lines of code; a file has at most {FILE_LINES_MAX}, cut it by what it decides"
        ));
    }
    let mut functions = Functions { path, breaches };
    functions.visit_file(&parsed);
    functions.breaches
}

fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// Whether an item exists only in tests.
pub(super) fn only_in_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        let tested = list.is_ok_and(|list| list.path.is_ident("cfg") && list.tokens.to_string() == "test");
        tested || attribute.path().is_ident("test")
    })
}

fn lines_of_code(text: &str, parsed: &syn::File) -> usize {
    let mut last = usize::MAX;
    for item in &parsed.items {
        if let Item::Mod(module) = item
            && only_in_tests(&module.attrs)
        {
            last = last.min(module.span().start().line);
        }
    }
    let code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    text.lines().take(last.saturating_sub(1)).filter(code).count()
}

struct Functions<'a> {
    path: &'a str,
    breaches: Vec<String>,
}

impl Functions<'_> {
    fn judge(&mut self, name: &syn::Ident, start: usize, end: usize) {
        let lines = end - start + 1;
        if lines > FUNCTION_LINES_MAX {
            self.breaches.push(format!(
                "{}:{start}: `{name}` has {lines} lines; a function fits a screen of {FUNCTION_LINES_MAX}",
                self.path
            ));
        }
    }
}

/// Lines are counted from `fn` to the closing brace: attributes and documentation are not part of a screen.
impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !only_in_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        if !only_in_tests(&function.attrs) {
            let (start, end) = (function.sig.span().start().line, function.block.span().end().line);
            self.judge(&function.sig.ident, start, end);
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        let (start, end) = (function.sig.span().start().line, function.block.span().end().line);
        self.judge(&function.sig.ident, start, end);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(body) = &function.default {
            self.judge(&function.sig.ident, function.sig.span().start().line, body.span().end().line);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::source, *};

    fn function_of(lines: usize) -> String {
        format!("fn long() {{\n{}}}\n", "    work();\n".repeat(lines - 2))
    }

    #[test]
    fn a_file_without_its_opening_words_is_found() {
        let found = breaches(&[source("a.rs", "fn main() {}\n")]);
        assert!(found[0].starts_with("a.rs:1: open the file with"), "{found:?}");
    }

    #[test]
    fn a_function_that_fits_no_screen_is_found_wherever_it_stands() {
        assert!(breaches(&[source("a.rs", &format!("//! A.\n{}", function_of(70)))]).is_empty());
        for (before, after) in [("", ""), ("mod inner {\n", "}\n"), ("impl A {\n", "}\n")] {
            let text = format!("//! A.\n{before}{}{after}", function_of(71));
            assert!(breaches(&[source("a.rs", &text)])[0].contains("`long` has 71 lines"), "{text}");
        }
    }

    #[test]
    fn tests_may_be_long() {
        let text = format!("//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n", function_of(900));
        assert!(breaches(&[source("a.rs", &text)]).is_empty());
    }

    #[test]
    fn comments_and_tests_are_not_lines_of_code() {
        let body = "const A: u8 = 1;\n// why\n\n".repeat(FILE_LINES_MAX);
        let text =
            format!("//! A.\n{body}#[cfg(test)]\nmod tests {{\n{}}}\n", "const B: u8 = 1;\n".repeat(900));
        assert!(breaches(&[source("a.rs", &text)]).is_empty());
        let text = format!("//! A.\nconst B: u8 = 1;\n{body}");
        assert!(breaches(&[source("a.rs", &text)])[0].contains("801 lines of code"));
    }
}
