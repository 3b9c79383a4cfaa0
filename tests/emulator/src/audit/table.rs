//! The audit as tables, in aligned text or in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::architecture::Architecture;
use super::check::{Status, Verdict};
use super::measured::Measured;
use super::sass::Class;
use super::{Error, KernelAudit, MainLoop};

/// All that an audit has to say.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Each kernel on each architecture.
    pub kernels: Vec<KernelAudit>,
    /// What the emulator counted, by kernel.
    pub measured: BTreeMap<String, Measured>,
    /// The limits and how they are kept.
    pub verdicts: Vec<Verdict>,
}

/// A table; every row has as many cells as the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: &'static str,
    /// The columns' names.
    pub header: Vec<&'static str>,
    /// The cells. The first two columns are words, the others numbers.
    pub rows: Vec<Vec<String>>,
}

impl Report {
    /// Returns whether no limit is exceeded.
    pub fn passes(&self) -> bool {
        self.verdicts.iter().all(|v| v.status != Status::Exceeded)
    }

    /// Returns the tables; one without rows is left out.
    pub fn tables(&self) -> Result<Vec<Table>, Error> {
        let tables = [self.whole(), self.loops(), self.counters()?];
        Ok(tables.into_iter().filter(|table| !table.rows.is_empty()).collect())
    }

    /// Returns tables and verdicts as text for a terminal.
    pub fn text(&self) -> Result<String, Error> {
        self.render(Table::text)
    }

    /// Returns the same as Markdown for a README.
    pub fn markdown(&self) -> Result<String, Error> {
        self.render(Table::markdown)
    }

    fn render(&self, table: fn(&Table) -> String) -> Result<String, Error> {
        let mut out = String::new();
        for each in self.tables()? {
            out += &table(&each);
            out.push('\n');
        }
        out += &self.summary();
        Ok(out)
    }

    /// The limits that are not kept, one a line, and how many are.
    fn summary(&self) -> String {
        let count = |status| self.verdicts.iter().filter(|v| v.status == status).count();
        let (kept, exceeded, unchecked) =
            (count(Status::Kept), count(Status::Exceeded), count(Status::NotChecked));
        if kept + exceeded + unchecked == 0 {
            return "No budgets.\n".to_string();
        }
        let mut out = String::new();
        for (status, word) in [(Status::NotChecked, "not checked"), (Status::Exceeded, "EXCEEDED")] {
            for verdict in self.verdicts.iter().filter(|v| v.status == status) {
                let _ = writeln!(out, "- {word}: {verdict}"); // writing to a String cannot fail
            }
        }
        out + &format!("Budgets: {kept} kept, {exceeded} exceeded, {unchecked} not checked.\n")
    }

    fn whole(&self) -> Table {
        let rows = self.kernels.iter().map(|audit| {
            let resources = &audit.resources;
            let tensor: u32 = audit.mix.iter().filter(|(c, _)| c.is_tensor()).map(|(_, n)| n).sum();
            let occupancy =
                audit.occupancy.map(|o| (o.blocks.to_string(), format!("{:.0} %", 100.0 * o.share)));
            let (blocks, share) = occupancy.unwrap_or_else(|| ("-".to_string(), "-".to_string()));
            let wide = audit.wide_share.map_or("-".to_string(), |s| format!("{:.0} %", 100.0 * s));
            let mut row = vec![resources.kernel.clone(), resources.architecture.clone()];
            row.push(audit.threads.map_or("-".to_string(), |n| n.to_string()));
            row.push(resources.registers.to_string());
            row.push((resources.spill_stores + resources.spill_loads).to_string());
            row.push(resources.stack.to_string());
            row.push((resources.static_shared + audit.dynamic_shared).to_string());
            row.extend([blocks, share, audit.instructions.to_string(), tensor.to_string(), wide]);
            row.push(audit.loads_in_flight.to_string());
            for classes in [&[Class::Ldl, Class::Stl][..], &[Class::Call], &[Class::Fchk], &[Class::F64]] {
                row.push(audit.count(classes).to_string());
            }
            row
        });
        Table {
            title: "Kernels",
            header: vec![
                "kernel",
                "architecture",
                "threads",
                "registers",
                "spill B",
                "stack B",
                "shared B",
                "blocks/SM",
                "occupancy",
                "instructions",
                "tensor",
                "16-byte",
                "loads in flight",
                "local",
                "CALL",
                "FCHK",
                "f64",
            ],
            rows: rows.collect(),
        }
    }

    fn loops(&self) -> Table {
        let rows = self.kernels.iter().filter_map(|a| Some(loop_row(a, a.main_loop.as_ref()?)));
        let mut header =
            vec!["kernel", "architecture", "from", "to", "instructions", "tensor", "other/tensor"];
        header.extend(LOOP_CLASSES.map(|(name, _)| name));
        header.extend(["tensor clocks", "issue/tensor", "shared/tensor", "model bound"]);
        Table { title: "Main loops, one pass of a warp", header, rows: rows.collect() }
    }

    fn counters(&self) -> Result<Table, Error> {
        let mut rows = Vec::new();
        for audit in &self.kernels {
            let Some(measured) = self.measured.get(&audit.resources.kernel) else { continue };
            let architecture = Architecture::named(&audit.resources.architecture)?;
            let (bound, clocks) = measured.clocks(architecture).bound();
            let mut row = vec![audit.resources.kernel.clone(), audit.resources.architecture.clone()];
            row.extend(
                [measured.launches, measured.warp_instructions, measured.global_bytes].map(|n| n.to_string()),
            );
            row.push(number(measured.sector_efficiency()));
            row.push(number(measured.wide_share()));
            row.push(number(measured.wavefront_ratio()));
            row.push(number(measured.bytes_per_instruction()));
            row.push(format!("{} ({clocks:.0} clocks)", bound.name()));
            rows.push(row);
        }
        let header = vec![
            "kernel",
            "architecture",
            "launches",
            "warp instructions",
            "global B",
            "bytes/sectors",
            "16-byte",
            "wavefronts/ideal",
            "B/instruction",
            "model bound",
        ];
        Ok(Table { title: "Counted by the emulator", header, rows })
    }
}

/// Columns of the loop table that are sums of classes.
const LOOP_CLASSES: [(&str, &[Class]); 10] = [
    ("LDSM", &[Class::Ldsm]),
    ("LDGSTS+TMA", &[Class::Ldgsts, Class::Tma]),
    ("LDS+STS", &[Class::Lds, Class::Sts, Class::Stsm]),
    ("LDG+STG", &[Class::Ldg, Class::Stg]),
    ("MUFU", &[Class::Mufu]),
    ("FMNMX", &[Class::Fmnmx]),
    ("FFMA", &[Class::Ffma]),
    ("integer", &[Class::Imad, Class::Integer]),
    ("MOV", &[Class::Mov]),
    ("BAR+SYNCS", &[Class::Bar, Class::Syncs]),
];

fn loop_row(audit: &KernelAudit, main: &MainLoop) -> Vec<String> {
    let tensor = f64::from(main.tensor());
    let others = (tensor > 0.0).then(|| (f64::from(main.instructions) - tensor) / tensor);
    let clocks = main.clocks.tensor.filter(|clocks| *clocks > 0.0);
    let mut row = vec![audit.resources.kernel.clone(), audit.resources.architecture.clone()];
    row.extend([format!("{:#x}", main.first), format!("{:#x}", main.last)]);
    row.extend([main.instructions.to_string(), main.tensor().to_string(), number(others)]);
    row.extend(LOOP_CLASSES.map(|(_, classes)| main.count(classes).to_string()));
    row.push(clocks.map_or("-".to_string(), |c| format!("{c:.0}")));
    row.push(number(clocks.map(|tensor| main.clocks.issue / tensor)));
    row.push(number(clocks.map(|tensor| main.clocks.shared / tensor)));
    // Without tensor work the bound is the memory of the device, of which the loop's text does not tell.
    row.push(clocks.map_or("-", |_| main.clocks.bound().name()).to_string());
    row
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |value| format!("{value:.2}"))
}

impl Table {
    /// Returns lines with the columns below each other: words on the left, numbers on the right.
    pub fn text(&self) -> String {
        let cells = || self.rows.iter().map(|row| row.iter().map(String::as_str).collect::<Vec<_>>());
        let lines: Vec<Vec<&str>> = std::iter::once(self.header.clone()).chain(cells()).collect();
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = format!("{}\n", self.title);
        for line in lines {
            let padded = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            out += padded.collect::<Vec<_>>().join("  ").trim_end();
            out.push('\n');
        }
        out
    }

    /// Returns a Markdown table under a line with the title.
    pub fn markdown(&self) -> String {
        let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
        let rules: Vec<&str> =
            (0..self.header.len()).map(|column| if column < 2 { ":--" } else { "--:" }).collect();
        let mut out = format!("**{}**\n\n{}{}", self.title, line(&self.header), line(&rules));
        for row in &self.rows {
            out += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
        }
        out
    }
}
