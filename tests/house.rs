//! The rules of the house as tests over the source tree: who may import whom, where `unsafe` and printing may occur.
//!
//! Each rule is one test; it fails with the file and the line that break it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the ground up; each may import those of lower rows.
const LAYERS: [&[&str]; 8] = [
    &["error"],
    &["device", "float"],
    &["tensor", "rng", "kernels"],
    &["ops"],
    &["flow", "optim", "data", "metrics", "plot", "nn"],
    &["train"],
    &["cli"],
    &["main"],
];

/// Files of `src/ops` that are shared by operations and are none themselves.
const OPERATION_HELPERS: [&str; 3] = ["mod", "rows", "modulation"];

/// The only files with `unsafe`: vector instructions, huge pages, the team's borrowed job, the CUDA boundary, rows and parts of attention, matrix
/// kernels and the tiles they share, mapped files.
const UNSAFE: [&str; 17] = [
    "src/device/simd.rs",
    "src/device/normal.rs",
    "src/device/combine.rs",
    "src/device/cpu.rs",
    "src/device/team.rs",
    "src/device/cuda/event.rs",
    "src/device/cuda/graph.rs",
    "src/device/cuda/library.rs",
    "src/device/cuda/memory.rs",
    "src/device/cuda/nvrtc.rs",
    "src/device/cuda/queue.rs",
    "src/device/cuda/staging.rs",
    "src/ops/attention/cpu_parts.rs",
    "src/ops/attention/cpu_rows.rs",
    "src/ops/linear/kernel.rs",
    "src/ops/linear/shared.rs",
    "src/data/map.rs",
];

/// The only places that print.
const PRINTING: [&str; 3] = ["src/cli/", "src/main.rs", "src/train/log.rs"];

/// Lines in a file, at most.
const LINES: usize = 500;

// ---------------------------------------------------------------------------------------------------------- the rules

#[test]
fn imports_point_downwards() {
    report(upward_imports(&tree("src")));
}

#[test]
fn modules_import_each_other_in_no_circle() {
    report(circular_imports(&tree("src")));
}

#[test]
fn every_operation_has_a_test_of_its_name() {
    let stems = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        entries.map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    let (operations, tests) = (stems("src/ops"), stems("tests/ops"));
    let main = fs::read_to_string(root().join("tests/ops/main.rs")).unwrap();
    let mut problems = Vec::new();
    for stem in operations.iter().filter(|stem| !OPERATION_HELPERS.contains(&stem.as_str())) {
        if !tests.contains(stem) || !main.contains(&format!("mod {stem};")) {
            problems
                .push(format!("src/ops/{stem}: has no tests/ops/{stem}.rs, or tests/ops/main.rs lacks it"));
        }
    }
    for stem in tests.iter().filter(|stem| *stem != "main" && !operations.contains(*stem)) {
        problems.push(format!("tests/ops/{stem}.rs: there is no operation src/ops/{stem}"));
    }
    report(problems);
}

#[test]
fn unsafe_stays_in_the_files_named_for_it() {
    let elsewhere = tree("src").into_iter().filter(|s| !UNSAFE.contains(&s.path.as_str()));
    report(elsewhere.flat_map(|s| s.words("unsafe", "is not one of the files that may be unsafe")).collect());
}

#[test]
fn only_the_command_line_and_the_log_print() {
    let silent = tree("src").into_iter().filter(|s| !PRINTING.iter().any(|p| s.path.starts_with(p)));
    report(silent.flat_map(|s| prints(&s)).collect());
}

#[test]
fn nothing_is_left_to_do() {
    let all = ["src", "tests", "benches"].into_iter().flat_map(tree);
    let unfinished = |s: &Source| -> Vec<String> {
        ["todo!", "unimplemented!", "dbg!"].iter().flat_map(|word| s.words(word, "is unfinished")).collect()
    };
    report(all.flat_map(|s| unfinished(&s)).collect());
}

#[test]
fn errors_are_returned_not_unwrapped() {
    report(tree("src").iter().flat_map(unwraps).collect());
}

#[test]
fn files_stay_short() {
    let long =
        ["src", "tests", "benches"].into_iter().flat_map(tree).filter(|s| s.text.lines().count() > LINES);
    let problem = |s: Source| format!("{}:{}: is longer than {LINES} lines", s.path, s.text.lines().count());
    report(long.map(problem).collect());
}

#[test]
fn every_file_starts_with_a_sentence() {
    let all = ["src", "tests", "benches"].into_iter().flat_map(tree);
    let silent = all.filter(|s| !starts_with_a_sentence(&s.text));
    report(silent.map(|s| format!("{}:1: does not start with `//! A sentence.`", s.path)).collect());
}

fn report(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

fn upward_imports(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let Some(from) = layer(&source.module()) else { continue }; // lib.rs names everything
        for (line, target) in source.imports() {
            if layer(&target).is_some_and(|to| to > from) {
                problems.push(format!("{}:{line}: imports `{target}`, which lies above it", source.path));
            }
        }
    }
    problems
}

fn circular_imports(sources: &[Source]) -> Vec<String> {
    let mut arrows: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for source in sources {
        for (line, target) in source.imports().into_iter().filter(|(_, target)| *target != source.module()) {
            let place = format!("{}:{line}: imports `{target}`", source.path);
            arrows.entry(source.module()).or_default().entry(target).or_insert(place);
        }
    }
    let reaches = |from: &str, goal: &str| -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(module) = open.pop() {
            let next = arrows.get(&module).into_iter().flat_map(|targets| targets.keys());
            open.extend(next.filter(|m| seen.insert((*m).clone())).cloned());
        }
        seen.contains(goal)
    };
    let all =
        arrows.iter().flat_map(|(from, targets)| targets.iter().map(move |(to, place)| (from, to, place)));
    all.filter(|(from, to, _)| layer(from).is_some() && reaches(to, from))
        .map(|(from, _, place)| format!("{place}, which imports `{from}` back"))
        .collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

fn prints(source: &Source) -> Vec<String> {
    let words = ["println!", "print!", "eprintln!", "eprint!"];
    words.iter().flat_map(|word| source.words(word, "is not one of the places that print")).collect()
}

/// Finds `.unwrap()` and the `expect` of the standard library: the one with a single argument. Tensors have an `expect`
/// with three, which returns an error.
fn unwraps(source: &Source) -> Vec<String> {
    let unwrap = source.words(".unwrap()", "returns no error");
    let expect = source.library.match_indices(".expect(").filter(|(at, word)| {
        let arguments = balanced(&source.library[at + word.len() - 1..]);
        top_level_commas(arguments.trim_end_matches([')', ',', ' ', '\n'])) == 0
    });
    let problem =
        |at| format!("{}:{}: `.expect(` returns no error", source.path, line_of(&source.library, at));
    unwrap.into_iter().chain(expect.map(|(at, _)| problem(at))).collect()
}

fn starts_with_a_sentence(text: &str) -> bool {
    let paragraph = text.lines().take_while(|l| l.starts_with("//! ")).last();
    paragraph.is_some_and(|last| last.trim_end_matches(['*', '`', ')']).ends_with(['.', ':']))
}

// ---------------------------------------------------------------------------------------------------- reading sources

/// A source file.
struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
    /// The text without comments, strings and what is compiled for tests alone.
    library: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into(), library: without_tests(&code(text)) }
    }

    /// Returns the module of the library that the file belongs to.
    fn module(&self) -> String {
        let below = self.path.trim_start_matches("src/");
        below.split(['/', '.']).next().unwrap_or_default().into()
    }

    /// Lists the lines where `word` stands in code, as a whole word.
    fn words(&self, word: &str, problem: &str) -> Vec<String> {
        let name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let whole = |at: &usize| {
            let (before, after) = (&self.library[..*at], &self.library[at + word.len()..]);
            let starts = word.starts_with('.') || !name(before.chars().next_back());
            starts && !(name(word.chars().next_back()) && name(after.chars().next()))
        };
        let found = self.library.match_indices(word).map(|(at, _)| at).filter(whole);
        found.map(|at| format!("{}:{}: `{word}` {problem}", self.path, line_of(&self.library, at))).collect()
    }

    /// Lists the modules named in `crate::…` and `flowprior::…` paths, with their lines.
    fn imports(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for prefix in ["crate::", "flowprior::"] {
            for (at, _) in self.library.match_indices(prefix) {
                let rest = &self.library[at + prefix.len()..];
                let names = if rest.starts_with('{') {
                    top_level_names(balanced(rest))
                } else {
                    vec![identifier(rest)]
                };
                found.extend(names.into_iter().map(|name| (line_of(&self.library, at), module_of(name))));
            }
        }
        found
    }
}

/// Returns the module behind a name that `lib.rs` re-exports.
fn module_of(name: &str) -> String {
    let module = match name {
        "Device" => "device",
        "Error" | "Result" => "error",
        "DType" | "FloatX" => "float",
        "Tensor" | "View" | "ViewMut" => "tensor",
        module => module,
    };
    module.into()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Reads all Rust files below a folder, but those that only tests compile.
fn tree(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    collect(&root().join(folder), &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        Source::new(&name, &fs::read_to_string(path).unwrap())
    };
    let sources: Vec<Source> = paths.iter().map(read).collect();
    let for_tests: BTreeSet<String> = sources.iter().flat_map(test_modules).collect();
    assert!(!sources.is_empty(), "{folder}: no sources");
    sources.into_iter().filter(|s| !for_tests.contains(&s.path)).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|e| e == "rs") {
            paths.push(path);
        }
    }
}

/// Lists the files that a source includes by `#[cfg(test)] mod NAME;`.
fn test_modules(source: &Source) -> Vec<String> {
    let folder = source.path.trim_end_matches("mod.rs").trim_end_matches(".rs").trim_end_matches('/');
    let after = code(&source.text).replace("#[cfg(test)]\n", "#[cfg(test)]");
    let modules = after.lines().filter_map(|l| Some(l.split_once("#[cfg(test)]")?.1.trim().to_owned()));
    let names = modules.filter_map(|l| Some(l.strip_prefix("mod ")?.strip_suffix(';')?.to_owned()));
    names.map(|name| format!("{folder}/{name}.rs")).collect()
}

/// Replaces comments and the content of strings and characters by spaces; lines stay where they are.
fn code(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (skipped, kept) = match first {
            '/' if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), 0),
            '/' if rest.starts_with("/*") => (rest.find("*/").map_or(rest.len(), |end| end + 2), 0),
            '"' => (string_end(rest), 1),
            'r' if rest.starts_with("r\"") || rest.starts_with("r#\"") => (raw_string_end(rest), 1),
            '\'' => (character_end(rest), 1),
            _ => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
        out.push_str(&rest[..kept]);
        out.extend(rest[kept..skipped].chars().map(blank));
        rest = &rest[skipped..];
    }
    out
}

fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

fn raw_string_end(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    let end = format!("\"{}", "#".repeat(hashes));
    let start = 2 + hashes;
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// Returns the length of a character literal, or 1 for the quote of a lifetime.
fn character_end(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    let end = match chars.next() {
        Some((_, '\\')) => text[2..].find('\'').map(|at| if at == 0 { 3 } else { at + 2 }),
        _ => chars.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at),
    };
    end.map_or(1, |at| at + 1)
}

/// Blanks every item behind `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(at) = out.find("#[cfg(test)]") {
        let item = &out[at..];
        let end = match (item.find(';'), item.find('{')) {
            (Some(semicolon), Some(brace)) if semicolon < brace => semicolon + 1,
            (_, Some(brace)) => brace + balanced(&item[brace..]).len(),
            (semicolon, None) => semicolon.map_or(item.len(), |s| s + 1),
        };
        let blank: String = item[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..at + end, &blank);
    }
    out
}

/// Returns the bracketed text that `text` starts with.
fn balanced(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        depth += matches!(c, '(' | '[' | '{') as i32 - matches!(c, ')' | ']' | '}') as i32;
        if depth == 0 {
            return &text[..at + c.len_utf8()];
        }
    }
    text
}

/// Counts the commas of a bracketed text that are in no inner bracket.
fn top_level_commas(bracketed: &str) -> usize {
    top_level_parts(bracketed).len() - 1
}

fn top_level_names(braced: &str) -> Vec<&str> {
    top_level_parts(braced)
        .into_iter()
        .map(|part| identifier(part.trim()))
        .filter(|name| !name.is_empty())
        .collect()
}

fn top_level_parts(bracketed: &str) -> Vec<&str> {
    let inner = &bracketed[1..];
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in inner.char_indices() {
        depth += matches!(c, '(' | '[' | '{') as i32 - matches!(c, ')' | ']' | '}') as i32;
        if c == ',' && depth == 0 {
            parts.push(&inner[start..at]);
            start = at + 1;
        }
    }
    parts.push(&inner[start..]);
    parts
}

fn identifier(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

// ------------------------------------------------------------------------------------------- the rules find what they seek

#[test]
fn comments_strings_and_tests_are_not_code() {
    let text = "//! Unsafe.\nlet a = \"unsafe \\\" unsafe\"; // unsafe\nlet b = '\"'; /* unsafe */ let c: &'static str;\n\
        let d = r#\"unsafe \"unsafe\"#;\n#[cfg(test)]\nmod tests { fn f() { unsafe {} } }\nlet e = unsafe { 1 };\n";
    let source = Source::new("src/x.rs", text);
    assert_eq!(source.words("unsafe", "!"), ["src/x.rs:7: `unsafe` !"]);
}

#[test]
fn an_import_from_above_is_found() {
    let source = Source::new("src/ops/silu.rs", "use crate::{error::Result, train::log};\nuse crate::nn;\n");
    let expected = [
        "src/ops/silu.rs:1: imports `train`, which lies above it",
        "src/ops/silu.rs:2: imports `nn`, which lies above it",
    ];
    assert_eq!(upward_imports(&[source]), expected);
}

#[test]
fn a_circle_of_neighbours_is_found() {
    let sources = [
        Source::new("src/nn/mod.rs", "use crate::flow::path;"),
        Source::new("src/flow/path.rs", "\nuse crate::nn::mlp;"),
        Source::new("src/data/mod.rs", "use crate::nn::mlp;"),
    ];
    let expected = [
        "src/flow/path.rs:2: imports `nn`, which imports `flow` back",
        "src/nn/mod.rs:1: imports `flow`, which imports `nn` back",
    ];
    assert_eq!(circular_imports(&sources), expected);
}

#[test]
fn unwrapping_is_told_from_checking_a_shape() {
    let text = "a.unwrap();\nb.unwrap_or(1);\nc.expect(\"no c\");\nd.expect(OP, \"d\", [n, 2])?;\ne.expect(\n    &f(1, 2),\n);";
    let source = Source::new("src/x.rs", text);
    let expected = [
        "src/x.rs:1: `.unwrap()` returns no error",
        "src/x.rs:3: `.expect(` returns no error",
        "src/x.rs:5: `.expect(` returns no error",
    ];
    assert_eq!(unwraps(&source), expected);
}

#[test]
fn printing_is_found() {
    let source = Source::new("src/nn/mod.rs", "eprintln!(\"x\");\nwriteln!(f, \"x\");\n");
    assert_eq!(prints(&source), ["src/nn/mod.rs:1: `eprintln!` is not one of the places that print"]);
}

#[test]
fn a_title_is_not_a_sentence() {
    assert!(starts_with_a_sentence("//! Says what it\n//! holds.\n//!\n//! More\nuse x;\n"));
    assert!(!starts_with_a_sentence("//! A title\n\nuse x;\n") && !starts_with_a_sentence("use x;\n"));
}
