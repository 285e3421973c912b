//! The rule on the core's map: in `steadfast-proto` a module uses only modules that `lib.rs` declares above it.
//!
//! That makes `lib.rs` a list to read from top to bottom, and what a lower module decides reaches a higher one as an
//! input, never as a call. `node`, which joins all, comes last. Tests may use what they like.

use super::{Source, shape::only_in_tests};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use std::collections::BTreeMap;
use syn::Item;

const CORE: &str = "crates/steadfast-proto/src/";

pub(super) fn breaches(sources: &[Source]) -> Vec<String> {
    let map = sources.iter().find(|source| source.path.strip_prefix(CORE) == Some("lib.rs"));
    let Some(map) = map.and_then(|source| syn::parse_file(source.text()).ok()) else {
        return vec![format!("{CORE}lib.rs:1: the map of the core is missing or cannot be read")];
    };
    let modules = declared(&map);
    let mut breaches = Vec::new();
    if let Some((last, line)) = modules.last().filter(|(name, _)| name != "node")
        && modules.iter().any(|(name, _)| name == "node")
    {
        breaches.push(format!(
            "{CORE}lib.rs:{line}: `{last}` stands below `node`, which joins all and comes last"
        ));
    }
    let rank: BTreeMap<&str, usize> =
        modules.iter().enumerate().map(|(index, (name, _))| (name.as_str(), index)).collect();
    for source in sources {
        let Some(module) = module_of(&source.path) else { continue };
        let Some(&own) = rank.get(module) else { continue };
        for (used, line) in used_modules(source.text()) {
            if rank.get(used.as_str()).is_some_and(|&other| other > own) {
                breaches.push(format!(
                    "{}:{line}: `{module}` uses `{used}`, which {CORE}lib.rs declares below it; take it as an input",
                    source.path
                ));
            }
        }
    }
    breaches
}

/// The modules in the order of their declaration, each with its line.
fn declared(map: &syn::File) -> Vec<(String, usize)> {
    let mut modules = Vec::new();
    for item in &map.items {
        if let Item::Mod(module) = item
            && !only_in_tests(&module.attrs)
        {
            modules.push((module.ident.to_string(), module.ident.span().start().line));
        }
    }
    modules
}

fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix(CORE)?.strip_suffix(".rs")?;
    inside.split('/').next()
}

/// Every `crate::NAME` and `crate::{NAME, …}` outside tests, with its line.
fn used_modules(text: &str) -> Vec<(String, usize)> {
    let Ok(parsed) = syn::parse_file(text) else { return Vec::new() };
    let mut used = Vec::new();
    for item in parsed.items {
        let tested = matches!(&item, Item::Mod(module) if only_in_tests(&module.attrs))
            || matches!(&item, Item::Use(import) if only_in_tests(&import.attrs));
        if !tested {
            collect(item.into_token_stream(), &mut used);
        }
    }
    used
}

fn collect(tokens: TokenStream, used: &mut Vec<(String, usize)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (index, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            collect(group.stream(), used);
        }
        let [TokenTree::Ident(root), TokenTree::Punct(first), TokenTree::Punct(second), name] =
            tokens.get(index..index + 4).unwrap_or_default()
        else {
            continue;
        };
        if root == "crate" && first.as_char() == ':' && second.as_char() == ':' {
            names(name, used);
        }
    }
}

fn names(token: &TokenTree, used: &mut Vec<(String, usize)>) {
    match token {
        TokenTree::Ident(name) => used.push((name.to_string(), name.span().start().line)),
        TokenTree::Group(group) => {
            let mut expected = true;
            for inner in group.stream() {
                if let TokenTree::Ident(name) = &inner
                    && expected
                {
                    used.push((name.to_string(), name.span().start().line));
                }
                expected = matches!(&inner, TokenTree::Punct(comma) if comma.as_char() == ',');
            }
        }
        TokenTree::Punct(_) | TokenTree::Literal(_) => (),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::source, *};

    fn core(modules: &str, detect: &str) -> Vec<String> {
        let map = source("crates/steadfast-proto/src/lib.rs", modules);
        breaches(&[map, source("crates/steadfast-proto/src/detect/network.rs", detect)])
    }

    const MAP: &str = "pub mod time; pub mod detect;\npub mod view;\npub mod node;";

    #[test]
    fn a_module_may_use_what_stands_above_it_and_itself() {
        assert!(core(MAP, "use crate::time::Time;\nuse crate::detect::Peer;").is_empty());
    }

    #[test]
    fn a_module_that_uses_a_later_one_is_found_in_every_form() {
        for text in [
            "use crate::view::View;",
            "use crate::{time::Time, view::View};",
            "fn a() { let b = crate::view::View::default(); }",
            "fn a() { assert!(crate::view::agreed()); }",
        ] {
            let found = core(MAP, text);
            assert_eq!(found.len(), 1, "{text}");
            assert!(found[0].contains("network.rs:1: `detect` uses `view`"), "{found:?}");
        }
    }

    #[test]
    fn tests_may_use_later_modules() {
        assert!(core(MAP, "#[cfg(test)]\nmod tests { use crate::node::Node; }").is_empty());
    }

    #[test]
    fn node_comes_last() {
        let found = core("pub mod node; pub mod pace;", "");
        assert!(found[0].contains("`pace` stands below `node`"), "{found:?}");
    }
}
