//! The result of a comparison: a table with a column for each server and for each ratio, or JSON.

use comfy_table::{Cell, CellAlignment, Table};
use serde_json::{Map, Value, json};

use super::super::readable;

/// One measured value of one server.
pub(in super::super) struct ServerFigure {
    name: &'static str,
    unit: &'static str,
    value: Datum,
}

#[derive(Clone, Copy)]
enum Datum {
    Number(f64),
    Text(&'static str),
}

impl ServerFigure {
    pub(super) fn number(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, unit, value: Datum::Number(value) }
    }

    pub(super) fn text(name: &'static str, value: &'static str) -> Self {
        Self { name, unit: "", value: Datum::Text(value) }
    }

    fn json(&self) -> Value {
        match self.value {
            Datum::Number(number) => number.into(),
            Datum::Text(text) => text.into(),
        }
    }

    fn shown(&self) -> Cell {
        match self.value {
            Datum::Number(number) => {
                Cell::new(readable(number)).set_alignment(CellAlignment::Right)
            }
            Datum::Text(text) => Cell::new(text).set_alignment(CellAlignment::Right),
        }
    }

    /// This value divided by the peer's; `None` for text, and if the peer's is zero.
    fn ratio(&self, theirs: &Self) -> Option<f64> {
        match (self.value, theirs.value) {
            (Datum::Number(ours), Datum::Number(theirs)) if theirs != 0.0 => Some(ours / theirs),
            _ => None,
        }
    }
}

/// The values of one server. All columns of a table have the same ones, in the same order.
pub(in super::super) struct ServerColumn {
    pub(super) name: &'static str,
    pub(super) figures: Vec<ServerFigure>,
}

/// The result of a comparison. The first column is Rollmill's.
pub(in super::super) struct Comparison {
    pub(super) peer: String,
    pub(super) rounds: u32,
    pub(super) seconds: u32,
    pub(super) ingest: Vec<ServerColumn>,
    pub(super) questions: Vec<ServerColumn>,
}

impl Comparison {
    /// Renders two tables for people.
    pub(in super::super) fn table(&self) -> String {
        let title = format!(
            "{}; {} alternating rounds of {} s; ÷: rollmill divided by it",
            self.peer, self.rounds, self.seconds
        );
        format!("{title}\n\n{}\n\n{}", table(&self.ingest), table(&self.questions))
    }

    /// Renders the result for programs.
    pub(in super::super) fn json(&self) -> Value {
        json!({"peer": self.peer, "rounds": self.rounds, "round_seconds": self.seconds,
            "ingest": object(&self.ingest), "queries": object(&self.questions)})
    }
}

fn table(columns: &[ServerColumn]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let [ours, theirs @ ..] = columns else { return table };
    let ratios = theirs.iter().map(|column| format!("÷ {}", column.name));
    let names = columns.iter().map(|column| column.name.to_owned());
    let header = [String::new()].into_iter().chain(names).chain(ratios).chain([String::new()]);
    table.set_header(header.map(|name| Cell::new(name).set_alignment(CellAlignment::Right)));
    for (at, figure) in ours.figures.iter().enumerate() {
        let mut row = vec![Cell::new(figure.name.replace('_', " "))];
        row.extend(columns.iter().map(|column| column.figures[at].shown()));
        let ratio = |column: &ServerColumn| {
            figure
                .ratio(&column.figures[at])
                .map_or_else(String::new, |ratio| format!("{ratio:.3}"))
        };
        row.extend(
            theirs
                .iter()
                .map(|column| Cell::new(ratio(column)).set_alignment(CellAlignment::Right)),
        );
        row.push(Cell::new(figure.unit));
        table.add_row(row);
    }
    table
}

/// The values by server; those of a peer include the ratios.
fn object(columns: &[ServerColumn]) -> Value {
    let mut servers = Map::new();
    for column in columns {
        let mut figures: Map<String, Value> =
            column.figures.iter().map(|figure| (figure.name.to_owned(), figure.json())).collect();
        if let Some(ours) = columns.first().filter(|ours| ours.name != column.name) {
            let both = ours.figures.iter().zip(&column.figures);
            let ratios: Map<String, Value> = both
                .filter_map(|(ours, theirs)| {
                    Some((ours.name.to_owned(), ours.ratio(theirs)?.into()))
                })
                .collect();
            figures.insert("rollmill_divided_by_this".to_owned(), ratios.into());
        }
        servers.insert(column.name.to_lowercase().replace(' ', "_"), figures.into());
    }
    servers.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_stand_beside_the_figures() {
        let column = |name, rate, durable| ServerColumn {
            name,
            figures: vec![
                ServerFigure::number("rate", rate, "/s"),
                ServerFigure::text("durable", durable),
            ],
        };
        let comparison = Comparison {
            peer: "peer 1".to_owned(),
            rounds: 2,
            seconds: 1,
            ingest: vec![
                column("rollmill", 1_500.0, "yes"),
                column("Peer A", 1_000.0, "no"),
                column("Peer B", 0.0, "no"),
            ],
            questions: vec![column("rollmill", 6.0, "yes"), column("Peer A", 2.0, "no")],
        };
        let json = comparison.json();
        assert_eq!(json["ingest"]["peer_a"]["rollmill_divided_by_this"], json!({"rate": 1.5}));
        assert_eq!(json["ingest"]["peer_b"]["rollmill_divided_by_this"], json!({}));
        assert_eq!(json["ingest"]["rollmill"], json!({"rate": 1500.0, "durable": "yes"}));
        assert_eq!(json["queries"]["peer_a"]["rate"], 2.0);
        let table = comparison.table();
        let rate = table.lines().find(|line| line.contains("rate")).unwrap();
        let words: Vec<&str> = rate.split_whitespace().collect();
        assert_eq!(words, ["rate", "1,500", "1,000", "0", "1.500", "/s"]);
    }
}
