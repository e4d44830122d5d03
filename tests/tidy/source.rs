//! The product code of `src/`, item by item: everything compiled only under `cfg(test)` is left
//! out, wherever it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A function of the product.
pub struct Function {
    pub name: String,
    pub line: usize,
    pub lines: usize,
}

/// A file of the product.
pub struct Source {
    /// Relative to the root of the package.
    pub path: PathBuf,
    /// Segments below the crate: `["model", "record"]`.
    pub module: Vec<String>,
    /// The whole text of the file.
    pub text: String,
    /// The text with tests and comments blanked; literals are kept.
    pub code: String,
    /// Number of lines, without those of tests.
    pub lines: usize,
    pub functions: Vec<Function>,
    /// Paths into the crate as written: they begin with `crate`, `self`, `super` or a child module.
    pub paths: BTreeSet<Vec<String>>,
    /// Top-level imports: the local name, and the path it stands for.
    pub names: BTreeMap<String, Vec<String>>,
}

impl Source {
    pub fn room(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    pub fn shown(&self) -> String {
        self.path.display().to_string()
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a directory with this extension.
pub fn walk(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).expect("a readable directory") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every file of the product, read once.
pub fn product() -> &'static [Source] {
    static PRODUCT: OnceLock<Vec<Source>> = OnceLock::new();
    PRODUCT.get_or_init(|| {
        let files: Vec<_> =
            walk(&root().join("src"), "rs").into_iter().map(|path| read(&path)).collect();
        let tests: BTreeSet<_> =
            files.iter().flat_map(|(_, tests)| tests.iter().cloned()).collect();
        let is_test = |source: &Source| {
            (1..=source.module.len()).any(|depth| tests.contains(&source.module[..depth]))
        };
        let files: Vec<_> =
            files.into_iter().map(|(source, _)| source).filter(|source| !is_test(source)).collect();
        assert!(files.len() > 150, "the walk found only {} files", files.len());
        files
    })
}

/// Reads a file. Also returns the modules that it declares for tests alone.
fn read(path: &Path) -> (Source, Vec<Vec<String>>) {
    let text = std::fs::read_to_string(path).expect("source is UTF-8");
    let below = path.strip_prefix(root().join("src")).expect("below src").with_extension("");
    let mut module: Vec<String> =
        below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    module.pop_if(|last| matches!(last.as_str(), "mod" | "lib" | "main"));
    let (source, tests) =
        parse(path.strip_prefix(root()).expect("in the package").to_owned(), module, text);
    let tests =
        tests.into_iter().map(|name| [source.module.clone(), vec![name]].concat()).collect();
    (source, tests)
}

/// Parses a file with this text.
pub fn parse(path: PathBuf, module: Vec<String>, text: String) -> (Source, Vec<String>) {
    let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut items = Items::default();
    items.visit_file(&file);
    let tokens = product_tokens(&text, &items.tests);
    let paths = paths_of(&tokens, &items.children);
    let mut names = BTreeMap::new();
    for item in &file.items {
        if let syn::Item::Use(item) = item {
            flatten(&item.tree, &mut Vec::new(), &mut names);
        }
    }
    let line_of = |at: usize| text[..at].matches('\n').count();
    let in_tests: BTreeSet<usize> =
        items.tests.iter().flat_map(|r| line_of(r.start)..=line_of(r.end)).collect();
    let lines = text.lines().count() - in_tests.len();
    let mut code: Vec<u8> =
        text.bytes().map(|byte| if byte == b'\n' { byte } else { b' ' }).collect();
    for token in &tokens {
        code[token.at.clone()].copy_from_slice(&text.as_bytes()[token.at.clone()]);
    }
    let code = String::from_utf8(code).expect("whole tokens");
    let functions = items.functions;
    (Source { path, module, text, code, lines, functions, paths, names }, items.test_modules)
}

/// Positions of the items of a file.
#[derive(Default)]
struct Items {
    tests: Vec<Range<usize>>,
    test_modules: Vec<String>,
    children: BTreeSet<String>,
    functions: Vec<Function>,
}

impl Items {
    /// Whether this is compiled for tests alone, in which case it is recorded and not visited.
    fn is_test(&mut self, attributes: &[syn::Attribute], whole: proc_macro2::Span) -> bool {
        let Some(first) = attributes.iter().find(|attribute| is_cfg_test(attribute)) else {
            return false;
        };
        self.tests.push(first.span().byte_range().start..whole.byte_range().end);
        true
    }

    fn function(&mut self, name: &syn::Ident, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.span().start().line;
        self.functions.push(Function {
            name: name.to_string(),
            line,
            lines: block.span().end().line - line,
        });
    }
}

fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else { return false };
    list.path.is_ident("cfg") && matches!(list.tokens.to_string().as_str(), "test" | "any (test)")
}

impl<'a> Visit<'a> for Items {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Enum(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Macro(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            syn::Item::Type(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        let is_test = self.is_test(attributes, item.span());
        match item {
            syn::Item::Mod(module) if is_test && module.content.is_none() => {
                self.test_modules.push(module.ident.to_string())
            }
            syn::Item::Mod(module) if !is_test && module.content.is_none() => {
                self.children.insert(module.ident.to_string());
            }
            _ => {}
        }
        if !is_test {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'a syn::ImplItem) {
        let tests = match item {
            syn::ImplItem::Fn(function) => self.is_test(&function.attrs, item.span()),
            _ => false,
        };
        if !tests {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'a syn::Field) {
        if !self.is_test(&field.attrs, field.span()) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'a syn::FieldValue) {
        if !self.is_test(&field.attrs, field.span()) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.function(&item.sig.ident, &item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.function(&item.sig.ident, &item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'a syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig.ident, &item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

/// A token and its position.
struct Token {
    text: String,
    at: Range<usize>,
}

/// Every token except those of tests and docs, also inside macros, which the syntax tree does not
/// cover.
fn product_tokens(text: &str, tests: &[Range<usize>]) -> Vec<Token> {
    let stream: TokenStream = text.parse().expect("it was parsed");
    let mut all = Vec::new();
    flat(stream, &mut all);
    let mut kept: Vec<Token> = Vec::new();
    let mut tokens = all.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if tests.iter().any(|range| range.contains(&token.at.start)) {
            continue;
        }
        let is_doc = token.text == "doc" && kept.last().is_some_and(|last| last.text == "[");
        if is_doc && tokens.peek().is_some_and(|next| next.text == "=") {
            // A doc comment is `#[doc = "..."]` as a whole: each of its tokens has the position of
            // the whole.
            kept.pop();
            kept.pop_if(|last| last.text == "!");
            kept.pop_if(|last| last.text == "#");
            for part in tokens.by_ref() {
                if part.text == "]" {
                    break;
                }
            }
            continue;
        }
        kept.push(token);
    }
    kept
}

fn flat(stream: TokenStream, found: &mut Vec<Token>) {
    for tree in stream {
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                found.push(Token { text: open.to_owned(), at: group.span_open().byte_range() });
                flat(group.stream(), found);
                found.push(Token { text: close.to_owned(), at: group.span_close().byte_range() });
            }
            tree => found.push(Token { text: tree.to_string(), at: tree.span().byte_range() }),
        }
    }
}

/// The paths that begin in this crate; grouped imports are expanded.
fn paths_of(tokens: &[Token], children: &BTreeSet<String>) -> BTreeSet<Vec<String>> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut found = BTreeSet::new();
    for at in 0..tokens.len() {
        let begins = matches!(text(at), "crate" | "self" | "super") || children.contains(text(at));
        let goes_on = text(at + 1) == ":" && text(at + 2) == ":";
        let stands_alone = at == 0 || !matches!(text(at - 1), ":" | "." | "$");
        if begins && goes_on && stands_alone {
            path(tokens, at, &mut Vec::new(), &mut found);
        }
    }
    found
}

/// Reads one path, or all paths of a group, from this token on. Returns the position after it.
fn path(
    tokens: &[Token],
    mut at: usize,
    prefix: &mut Vec<String>,
    found: &mut BTreeSet<Vec<String>>,
) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let depth = prefix.len();
    loop {
        if text(at) == "{" {
            at += 1;
            while text(at) != "}" && at < tokens.len() {
                at = path(tokens, at, prefix, found);
                while !matches!(text(at), "," | "}") && at < tokens.len() {
                    at += 1;
                }
                at += usize::from(text(at) == ",");
            }
            prefix.truncate(depth);
            return at + 1;
        }
        prefix.push(text(at).trim_start_matches("r#").to_owned());
        at += 1;
        if !(text(at) == ":" && text(at + 1) == ":") || text(at + 2) == "<" {
            found.insert(prefix.clone());
            prefix.truncate(depth);
            return at;
        }
        at += 2;
    }
}

fn flatten(
    tree: &syn::UseTree,
    prefix: &mut Vec<String>,
    names: &mut BTreeMap<String, Vec<String>>,
) {
    let whole = |prefix: &[String], last: &syn::Ident| [prefix, &[last.to_string()]].concat();
    match tree {
        syn::UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, names);
            prefix.pop();
        }
        syn::UseTree::Name(name) => {
            names.insert(name.ident.to_string(), whole(prefix, &name.ident));
        }
        syn::UseTree::Rename(rename) => {
            names.insert(rename.rename.to_string(), whole(prefix, &rename.ident));
        }
        syn::UseTree::Group(group) => {
            group.items.iter().for_each(|tree| flatten(tree, prefix, names))
        }
        syn::UseTree::Glob(_) => {}
    }
}

#[test]
fn tests_are_left_out_wherever_they_stand() {
    let text = "//! Docs.\n#[cfg(test)]\nmod tests;\nuse crate::{a::b, c::{self, D as E}};\n\
        /// crate::docs::X\nfn f() {\n    // crate::comment\n    \
        g(\"http://x\", crate::late::now());\n}\n\
        #[cfg(test)]\nmod more {\n    use crate::tested::X;\n}\n\
        struct S {\n    #[cfg(test)]\n    x: crate::seen::X,\n}\n";
    let (source, tests) = parse(PathBuf::from("src/x.rs"), vec!["x".to_owned()], text.to_owned());
    assert_eq!(tests, ["tests"]);
    let paths: Vec<String> = source.paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["crate::a::b", "crate::c::D", "crate::c::self", "crate::late::now"]);
    assert_eq!(source.names["E"], ["crate", "c", "D"]);
    assert!(
        source.code.contains("http://x")
            && !source.code.contains("Docs")
            && !source.code.contains("comment")
    );
    assert_eq!((source.lines, source.functions[0].lines, source.functions[0].line), (9, 3, 6));
}
