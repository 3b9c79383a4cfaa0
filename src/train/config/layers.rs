//! Reads configuration layers, refuses unknown keys by name and source, and merges the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::{Table, Value};

use super::refused;
use super::sections::{Builtin, Config, Stage, Toy};
use crate::error::{Error, Result};
use crate::nn::dit::Size;
use crate::train::preset;

/// The table of a layer that holds what counts in one stage only.
const FOR: &str = "for";
/// The keys of `[data]` of which one replaces the others.
const DATA_SOURCES: [&str; 3] = ["toy", "path", "builtin"];

/// Where a configuration comes from, beside `--set`.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The stage that the command runs; without it, the layers decide.
    pub stage: Option<Stage>,
    /// The name of a preset.
    pub preset: Option<String>,
    /// A TOML file.
    pub file: Option<PathBuf>,
}

/// One source of keys, with the words that errors call it by.
struct Layer {
    source: String,
    table: Table,
}

/// Reads all layers and merges them, without validating values.
pub fn load(sources: &Sources, sets: &[String]) -> Result<Config> {
    let layers = read(sources, sets)?;
    let schema = schema()?;
    let mut parts = Vec::new();
    for layer in layers {
        parts.push(split(layer, &schema)?);
    }
    let stage = stage(sources.stage, &parts)?;
    let mut merged = Table::new();
    for (common, for_stage) in parts {
        merge(&mut merged, common.table);
        if let Some((_, own)) = for_stage.into_iter().find(|(s, _)| *s == stage) {
            merge(&mut merged, own.table);
        }
    }
    let mut config: Config = typed("the merged configuration", &merged)?;
    config.stage = stage;
    settle_sizes(&mut config, &merged)?;
    Ok(config)
}

/// Takes width, depth and heads of network and autoencoder from a published size; a key that says otherwise is refused.
fn settle_sizes(config: &mut Config, merged: &Table) -> Result<()> {
    let m = &mut config.model;
    let own = [("width", &mut m.width), ("depth", &mut m.depth), ("heads", &mut m.heads)];
    settle_size("model", m.size, own, merged.get("model"))?;
    let a = &mut config.align.autoencoder;
    let own = [("width", &mut a.width), ("depth", &mut a.depth), ("heads", &mut a.heads)];
    let said = merged.get("align").and_then(|align| align.get("autoencoder"));
    settle_size("align.autoencoder", a.size, own, said)
}

fn settle_size(
    table: &str,
    size: Option<Size>,
    own: [(&str, &mut usize); 3],
    said: Option<&Value>,
) -> Result<()> {
    let Some(size) = size else { return Ok(()) };
    let (depth, width, heads) = size.sizes();
    for ((key, own), of_size) in own.into_iter().zip([width, depth, heads]) {
        if said.is_some_and(|said| said.get(key).is_some()) && *own != of_size {
            return Err(Error::Usage(format!(
                "{table}.size = \"{size:?}\" has {key} {of_size}, but {table}.{key} is {own}; leave one of them out"
            )));
        }
        *own = of_size;
    }
    Ok(())
}

/// Flattens a configuration to `a.b.c` → value as TOML text.
pub fn flatten(config: &Config) -> Result<BTreeMap<String, String>> {
    let mut flat = BTreeMap::new();
    walk(&table_of(config)?, "", &mut |key, value| {
        if !value.is_table() {
            flat.insert(key, value.to_string());
        }
    });
    Ok(flat)
}

fn read(sources: &Sources, sets: &[String]) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    if let Some(name) = &sources.preset {
        for text in preset::texts(name)? {
            layers.push(parse(format!("preset `{name}`"), text)?);
        }
    }
    if let Some(path) = &sources.file {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        layers.push(parse(path.display().to_string(), &text)?);
    }
    for set in sets {
        layers.push(parse_set(set)?);
    }
    Ok(layers)
}

fn parse(source: String, text: &str) -> Result<Layer> {
    match text.parse::<Table>() {
        Ok(table) => Ok(Layer { source, table }),
        Err(e) => Err(Error::Usage(format!("{source}: not valid TOML: {}", e.to_string().trim_end()))),
    }
}

/// Reads `a.b=c` into nested tables.
fn parse_set(set: &str) -> Result<Layer> {
    let source = format!("`--set {set}`");
    let malformed = || Error::Usage(format!("{source}: expected KEY=VALUE, such as `train.steps=1000`"));
    let (key, text) = set.split_once('=').ok_or_else(malformed)?;
    let mut value = parse_value(text);
    for word in key.trim().rsplit('.') {
        if word.is_empty() {
            return Err(malformed());
        }
        value = Value::Table(Table::from_iter([(word.to_owned(), value)]));
    }
    match value {
        Value::Table(table) => Ok(Layer { source, table }),
        _ => Err(malformed()),
    }
}

/// Reads a TOML value; what is none is a bare word, and taken as a string.
fn parse_value(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    match parsed.map(|table| table.into_iter().collect::<Vec<_>>()) {
        Some(mut entries) if entries.len() == 1 => entries.remove(0).1,
        _ => Value::String(text.trim().to_owned()),
    }
}

/// Parts a layer into what counts in both stages and what counts in one, all keys and types checked.
fn split(mut layer: Layer, schema: &Table) -> Result<(Layer, Vec<(Stage, Layer)>)> {
    let mut own = Vec::new();
    match layer.table.remove(FOR) {
        None => {}
        Some(Value::Table(stages)) => {
            for (name, value) in stages {
                let (stage, table) = stage_table(&layer.source, &name, value)?;
                own.push((stage, Layer { source: layer.source.clone(), table }));
            }
        }
        Some(other) => return Err(wrong_for(&layer.source, other.type_str())),
    }
    for part in std::iter::once(&layer).chain(own.iter().map(|(_, part)| part)) {
        check_keys(part, &part.table, schema, "", schema)?;
        typed::<Config>(&part.source, &part.table)?;
    }
    Ok((layer, own))
}

fn stage_table(source: &str, name: &str, value: Value) -> Result<(Stage, Table)> {
    let stage = [Stage::Pretrain, Stage::Align].into_iter().find(|s| s.name() == name);
    match (stage, value) {
        (Some(stage), Value::Table(table)) => Ok((stage, table)),
        (Some(_), other) => Err(wrong_for(source, other.type_str())),
        (None, _) => Err(wrong_for(source, &format!("`for.{name}`"))),
    }
}

fn wrong_for(source: &str, found: &str) -> Error {
    Error::Usage(format!("{source}: expected tables `for.pretrain` and `for.align`, found {found}"))
}

/// Refuses keys that the schema lacks, with the nearest that it has.
fn check_keys(layer: &Layer, table: &Table, schema: &Table, prefix: &str, all: &Table) -> Result<()> {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match (schema.get(name), value) {
            (Some(Value::Table(inner)), Value::Table(table)) => {
                check_keys(layer, table, inner, &format!("{key}."), all)?;
            }
            (Some(Value::Table(_)), _) => {
                return Err(Error::Usage(format!("{}: `{key}` is a section, not a value", layer.source)));
            }
            (Some(_), _) => {}
            (None, _) => return Err(unknown(&layer.source, &key, name, all)),
        }
    }
    Ok(())
}

fn unknown(source: &str, key: &str, leaf: &str, all: &Table) -> Error {
    if let Some(reason) = refused::reason(leaf) {
        return Error::Usage(format!("{source}: `{key}` is refused: {reason}"));
    }
    if let Some(ours) = refused::renamed(leaf) {
        return Error::Usage(format!("{source}: unknown key `{key}`; here it is `{ours}`"));
    }
    let hint = match nearest(key, leaf, all) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("known here: {}", siblings(key, all).join(", ")),
    };
    Error::Usage(format!("{source}: unknown key `{key}`; {hint}"))
}

/// Lists the keys of the section that `key` was looked for in.
fn siblings(key: &str, all: &Table) -> Vec<String> {
    let section = key.rsplit_once('.').map_or("", |(section, _)| section);
    let mut known = Vec::new();
    walk(all, "", &mut |candidate, _| {
        let (parent, word) = candidate.rsplit_once('.').unwrap_or(("", &candidate));
        if parent == section {
            known.push(format!("`{word}`"));
        }
    });
    known
}

/// Finds the known key whose last word is nearest to `leaf`, at most half of it wrong; on equal terms one of the same
/// section.
fn nearest(key: &str, leaf: &str, all: &Table) -> Option<String> {
    let mut known = Vec::new();
    walk(all, "", &mut |key, _| known.push(key));
    let distance = |candidate: &String| {
        let (section, word) = candidate.rsplit_once('.').unwrap_or(("", candidate));
        let elsewhere = section != key.rsplit_once('.').map_or("", |(section, _)| section);
        2 * strsim::damerau_levenshtein(leaf, word) + usize::from(elsewhere)
    };
    known.into_iter().min_by_key(distance).filter(|best| distance(best) <= leaf.len().max(3))
}

/// Calls `visit` with the path and value of every section and key.
fn walk(table: &Table, prefix: &str, visit: &mut impl FnMut(String, &Value)) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        visit(key.clone(), value);
        if let Value::Table(inner) = value {
            walk(inner, &format!("{key}."), visit);
        }
    }
}

/// Returns all keys: a configuration in which every optional one is set.
fn schema() -> Result<Table> {
    let mut config = Config::default();
    config.data.toy = Some(Toy::Gaussians);
    config.data.path = Some(PathBuf::new());
    config.data.builtin = Some(Builtin::Digits);
    config.align.prior = Some(PathBuf::new());
    config.model.size = Some(Size::S);
    config.model.image = Some([0; 3]);
    config.align.autoencoder.size = Some(Size::S);
    config.align.autoencoder.image = Some([0; 3]);
    table_of(&config)
}

fn table_of(config: &Config) -> Result<Table> {
    Table::try_from(config).map_err(|e| Error::Usage(format!("cannot write the configuration as TOML: {e}")))
}

fn typed<T: serde::de::DeserializeOwned>(source: &str, table: &Table) -> Result<T> {
    let text = |e: toml::de::Error| e.to_string().trim_end().replace('\n', " ");
    table.clone().try_into().map_err(|e| Error::Usage(format!("{source}: {}", text(e))))
}

/// Settles the stage: the command's, which layers must not contradict, or the last one that a layer names.
fn stage(wanted: Option<Stage>, parts: &[(Layer, Vec<(Stage, Layer)>)]) -> Result<Stage> {
    let mut stage = wanted;
    for (layer, _) in parts {
        let Some(Value::String(name)) = layer.table.get("stage") else { continue };
        let named = if name == Stage::Align.name() { Stage::Align } else { Stage::Pretrain };
        if wanted.is_some_and(|wanted| wanted != named) {
            let command = if named == Stage::Align { Stage::Pretrain } else { Stage::Align };
            return Err(Error::Usage(format!(
                "{}: is for stage `{name}`, but the command is `{}`",
                layer.source,
                command.name()
            )));
        }
        stage = Some(named);
    }
    Ok(stage.unwrap_or(Stage::Pretrain))
}

/// Puts `over` on top of `base`: tables key by key, anything else replaced.
fn merge(base: &mut Table, over: Table) {
    if let (Some(Value::Table(data)), Some(Value::Table(new))) = (base.get_mut("data"), over.get("data"))
        && DATA_SOURCES.iter().any(|source| new.contains_key(*source))
    {
        DATA_SOURCES.iter().for_each(|source| drop(data.remove(*source)));
    }
    for (name, value) in over {
        match (base.get_mut(&name), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => drop(base.insert(name, value)),
        }
    }
}
