//! The table that people read: a row per scenario, a column per system.

use std::collections::BTreeMap;

/// Rows in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<(String, BTreeMap<String, String>)>,
}

impl Table {
    /// Puts one cell, and says it at once.
    pub fn put(&mut self, row: &str, column: &str, text: String) {
        println!("{row} | {column}: {text}");
        if !self.columns.iter().any(|known| known == column) {
            self.columns.push(column.to_owned());
        }
        let place = self.rows.iter().position(|(name, _)| name == row);
        let place = place.unwrap_or_else(|| {
            self.rows.push((row.to_owned(), BTreeMap::new()));
            self.rows.len() - 1
        });
        if let Some((_, cells)) = self.rows.get_mut(place) {
            cells.insert(column.to_owned(), text);
        }
    }

    /// Prints it as Markdown.
    pub fn print(&self) {
        println!("\n| | {} |", self.columns.join(" | "));
        println!("|---|{}", "---|".repeat(self.columns.len()));
        for (row, cells) in &self.rows {
            let cells: Vec<&str> =
                self.columns.iter().map(|column| cells.get(column).map_or("-", String::as_str)).collect();
            println!("| {row} | {} |", cells.join(" | "));
        }
    }
}
