//! Measures one Rust source file without a parser: a tokenizer that knows comments and literals, and counted braces.

/// What one source file measures.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// Lines that are not part of a test, comments and blank ones included.
    pub(crate) lines: usize,
    /// The functions outside tests.
    pub(crate) functions: Vec<Item>,
    /// The structs with named fields outside tests.
    pub(crate) structs: Vec<Item>,
    /// The modules that live in files of their own and are compiled for tests only.
    pub(crate) test_modules: Vec<String>,
}

/// A function or a struct.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// The name.
    pub(crate) name: String,
    /// The line its name stands on, from 1.
    pub(crate) line: usize,
    /// A function's lines between its braces, or a struct's fields.
    pub(crate) size: usize,
}

impl Source {
    /// Measures a file's text.
    pub(crate) fn measure(text: &str) -> Self {
        let tokens = tokenize(text);
        let total = text.lines().count();
        let mut source = Source::default();
        let mut test_lines = 0;
        let mut at = 0;
        while at < tokens.len() {
            if let Some(end) = test_item(&tokens, at) {
                source.test_modules.extend(module_name(&tokens[at..=end]));
                test_lines += tokens[end].line - tokens[at].line + 1;
                at = end + 1;
                continue;
            }
            source.functions.extend(function(&tokens, at));
            source.structs.extend(named_struct(&tokens, at));
            at += 1;
        }
        source.lines = if whole_file_is_test(&tokens) { 0 } else { total.saturating_sub(test_lines) };
        source
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    line: usize,
    /// A word (identifier, keyword or number) or one character of punctuation; literals and comments leave none.
    text: &'a str,
}

/// If a test-only item starts at `at`, the index of its last token.
fn test_item(tokens: &[Token<'_>], at: usize) -> Option<usize> {
    let attribute_end = test_attribute(tokens, at)?;
    let mut item = attribute_end + 1;
    while is(tokens, item, "#") && is(tokens, item + 1, "[") {
        item = closing(tokens, item + 1)? + 1;
    }
    let first = tokens.get(item)?.text;
    let items = ["mod", "fn", "use", "impl", "extern", "struct", "enum", "const", "static", "type", "trait", "pub"];
    if items.contains(&first) || ["async", "unsafe", "macro_rules"].contains(&first) {
        item_end(tokens, item).map(|(_, end)| end)
    } else {
        None
    }
}

/// If `#[cfg(test)]`, `#[cfg(all(test, ..))]` or `#[test]` starts at `at`, the index of its `]`.
fn test_attribute(tokens: &[Token<'_>], at: usize) -> Option<usize> {
    let starts = |words: &[&str]| words.iter().enumerate().all(|(i, word)| is(tokens, at + i, word));
    let is_test = starts(&["#", "[", "cfg", "(", "test", ")"])
        || starts(&["#", "[", "cfg", "(", "all", "(", "test"])
        || starts(&["#", "[", "test", "]"]);
    if is_test { closing(tokens, at + 1) } else { None }
}

fn whole_file_is_test(tokens: &[Token<'_>]) -> bool {
    let wanted = ["#", "!", "[", "cfg", "(", "test", ")", "]"];
    tokens.windows(wanted.len()).any(|window| window.iter().zip(wanted).all(|(token, word)| token.text == word))
}

/// The name of a module without a body, if that is what the item is.
fn module_name(item: &[Token<'_>]) -> Option<String> {
    let at = item.iter().position(|token| token.text == "mod")?;
    (item.get(at + 2)?.text == ";").then(|| item[at + 1].text.to_owned())
}

/// The function whose `fn` stands at `at`, if it has a name and a body.
fn function(tokens: &[Token<'_>], at: usize) -> Option<Item> {
    if !is(tokens, at, "fn") || !is_word(tokens.get(at + 1)?) {
        return None;
    }
    let (open, close) = body(tokens, at + 2)?;
    let size = (tokens[close].line - tokens[open].line).saturating_sub(1);
    Some(Item { name: tokens[at + 1].text.to_owned(), line: tokens[at + 1].line, size })
}

/// The struct whose keyword stands at `at`, if it has named fields.
fn named_struct(tokens: &[Token<'_>], at: usize) -> Option<Item> {
    if !is(tokens, at, "struct") || !is_word(tokens.get(at + 1)?) {
        return None;
    }
    let (open, close) = body(tokens, at + 2)?;
    let mut fields = 0;
    let mut token = open + 1;
    while token < close {
        let text = tokens[token].text;
        if ["(", "[", "{"].contains(&text) {
            token = closing(tokens, token)?;
        } else if text == ":" {
            // The colon after a field's name stands alone, that of a path does not.
            let path = is(tokens, token + 1, ":");
            fields += usize::from(!path);
            token += usize::from(path);
        }
        token += 1;
    }
    Some(Item { name: tokens[at + 1].text.to_owned(), line: tokens[at + 1].line, size: fields })
}

/// The braces of the body that follows a signature, or `None` where a `;` ends the item.
fn body(tokens: &[Token<'_>], from: usize) -> Option<(usize, usize)> {
    item_end(tokens, from).filter(|(open, close)| open != close)
}

/// Where the item at `from` ends: the braces of its body, or twice its `;`.
fn item_end(tokens: &[Token<'_>], from: usize) -> Option<(usize, usize)> {
    let mut at = from;
    let mut before = "";
    loop {
        let text = tokens.get(at)?.text;
        if text == ";" {
            return Some((at, at));
        }
        if ["(", "[", "{"].contains(&text) {
            let close = closing(tokens, at)?;
            // Such braces are a constant in a type, the value of a constant, or the list of a `use`.
            if text == "{" && !["<", "=", ":"].contains(&before) {
                return Some((at, close));
            }
            at = close;
        }
        before = tokens[at].text;
        at += 1;
    }
}

/// The index of the bracket that closes the one at `open`.
fn closing(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn is(tokens: &[Token<'_>], at: usize, text: &str) -> bool {
    tokens.get(at).is_some_and(|token| token.text == text)
}

fn is_word(token: &Token<'_>) -> bool {
    token.text.starts_with(word_char)
}

fn tokenize(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = literal(rest) {
            length
        } else {
            let length = word(rest).max(first.len_utf8());
            if !first.is_whitespace() {
                tokens.push(Token { line, text: &rest[..length] });
            }
            length
        };
        let (passed, left) = rest.split_at(length);
        line += passed.matches('\n').count();
        rest = left;
    }
    tokens
}

fn word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the word, a raw identifier included, that `text` starts with; 0 if it starts with none.
fn word(text: &str) -> usize {
    let prefix = if text.starts_with("r#") && text[2..].starts_with(word_char) { 2 } else { 0 };
    let rest = &text[prefix..];
    prefix + rest.find(|c| !word_char(c)).unwrap_or(rest.len())
}

/// The length of a comment that may hold others.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of the string, byte string, raw string, character or byte that `text` starts with.
fn literal(text: &str) -> Option<usize> {
    let prefix = word(text);
    let (before, rest) = text.split_at(prefix);
    match before {
        "" | "b" | "c" if rest.starts_with('"') => Some(prefix + quoted(rest, '"')?),
        "" | "b" if rest.starts_with('\'') => Some(prefix + character(rest)?),
        "r" | "br" | "cr" => {
            let hashes = rest.find(|c| c != '#').unwrap_or(0);
            let inside = rest[hashes..].strip_prefix('"')?;
            let end = format!("\"{}", "#".repeat(hashes));
            Some(prefix + hashes + 1 + inside.find(&end)? + end.len())
        }
        _ => None,
    }
}

/// The length of a character literal; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.chars().skip(1);
    let first = chars.next()?;
    if first == '\\' || chars.next() == Some('\'') { quoted(text, '\'') } else { None }
}

/// The length of what stands between two `quote`s, they included, where a backslash escapes one.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return Some(at + c.len_utf8());
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions(text: &str) -> Vec<(String, usize, usize)> {
        Source::measure(text).functions.into_iter().map(|it| (it.name, it.line, it.size)).collect()
    }

    #[test]
    fn a_functions_size_is_the_lines_between_its_braces() {
        let text = "/// Doc.\npub fn one(\n    a: u8,\n) -> u8 {\n    // why\n\n    a\n}\nfn two() {}\n";
        assert_eq!(functions(text), [("one".into(), 2, 3), ("two".into(), 9, 0)]);
    }

    #[test]
    fn braces_in_comments_and_literals_do_not_count() {
        let text = r##"
            fn f<'a>(x: &'a str) -> char {
                // }
                /* } /* } */ } */
                let _ = ("}", "\"}", r#"}"}"#, b"}", br"}\", c"}", b'}', '\'', '\\');
                'a: loop { break 'a; }
                '}'
            }
            fn g() {
            }
        "##;
        assert_eq!(functions(text), [("f".into(), 2, 5), ("g".into(), 9, 0)]);
    }

    #[test]
    fn a_body_is_found_behind_any_signature() {
        let text = "trait T { fn none(&self) -> [u8; 4]; fn given(&self) {\n 1;\n } }
            fn pointer(f: fn(u8) -> u8, g: impl Fn([u8; { 1 + 1 }])) -> Array<{ 3 }>
            where
                Self: Sized,
            {
                a();
            }
            fn r#match() {}";
        let expected = [("given".into(), 1, 1), ("pointer".into(), 4, 1), ("r#match".into(), 10, 0)];
        assert_eq!(functions(text), expected);
    }

    #[test]
    fn a_function_inside_another_counts_in_both() {
        assert_eq!(functions("fn a() {\n fn b() {\n 1\n }\n}"), [("a".into(), 1, 3), ("b".into(), 2, 1)]);
    }

    #[test]
    fn test_items_are_left_out() {
        let text =
            "fn a() {}\n#[cfg(test)]\nextern crate std;\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    fn b() {}\n}\n";
        let source = Source::measure(text);
        assert_eq!(source.lines, 1);
        assert_eq!(source.functions.len(), 1);
        assert_eq!(source.test_modules, Vec::<String>::new());
    }

    #[test]
    fn test_modules_in_their_own_files_are_named() {
        let source =
            Source::measure("#[cfg(test)]\npub(crate) mod pair;\n#[cfg(all(test, unix))]\nmod tests;\nmod net;\n");
        assert_eq!(source.test_modules, ["pair", "tests"]);
        assert_eq!(source.lines, 1);
    }

    #[test]
    fn code_that_is_left_out_of_tests_counts() {
        assert_eq!(functions("#![cfg_attr(not(test), deny(x))]\n#[cfg(not(test))]\nfn a() {}").len(), 1);
        assert_eq!(Source::measure("#![cfg(test)]\nfn a() {}").lines, 0);
    }

    #[test]
    fn fields_are_counted_and_paths_are_not() {
        let text =
            "pub struct A<T: Copy> where T: Sized {\n    #[x(a: 1)]\n    pub a: std::vec::Vec<T>,\n    b: fn(c: u8),\n}
            struct B(u8, u8);
            struct C;";
        let structs = Source::measure(text).structs;
        assert_eq!(structs, [Item { name: "A".into(), line: 1, size: 2 }]);
    }

    #[test]
    fn unfinished_source_is_measured_without_a_panic() {
        let whole = "#[cfg(test)] mod a { fn f() { \"s\"; r#\"t\"#; 'c'; /* c */ } } struct S { a: u8 }";
        for end in (0..=whole.len()).filter(|end| whole.is_char_boundary(*end)) {
            Source::measure(&whole[..end]);
            Source::measure(&whole[end..]);
        }
    }
}
