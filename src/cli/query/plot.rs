//! Draws a series as bars of text. It never suggests data that is not there: a bucket without data
//! is a gap, axes begin at zero or say where they begin, and all series of a plot share one scale.

/// Height of a plot in lines.
const ROWS: usize = 8;
/// Block characters that fill a cell by eighths, from the bottom.
const PARTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Widest bar, in characters.
const MAX_BAR: usize = 6;

/// One line of a plot: a value for each bucket, `None` where there is no data.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlotLine {
    pub(super) title: String,
    pub(super) values: Vec<Option<f64>>,
}

/// Draws the lines one below the other, `width` characters wide. `from` and `to` label the first
/// and the last bucket.
pub(super) fn draw(lines: &[PlotLine], from: &str, to: &str, width: usize) -> String {
    let all = || lines.iter().flat_map(|line| line.values.iter().flatten().copied());
    let windows = lines.iter().map(|line| line.values.len()).max().unwrap_or(0);
    if windows == 0 || all().next().is_none() {
        return String::new();
    }
    // Zero is always part of the axis, so that the lengths of bars can be compared.
    let (low, high) =
        all().fold((0.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    let labels = [high, low].map(super::super::number_format::short);
    let margin = labels.iter().map(String::len).max().unwrap_or(0) + 1;
    let room = width.saturating_sub(margin + 1).max(10);
    // With more buckets than columns, several share a bar.
    let folded = windows.div_ceil(room);
    let bar = (room / windows.div_ceil(folded)).clamp(1, MAX_BAR);
    let mut out = String::new();
    let mut notes = Vec::new();
    if low < 0.0 {
        notes.push(format!("the axis begins at {}", labels[1]));
    }
    if folded > 1 {
        notes.push(format!("each bar is the highest of {folded} windows"));
    }
    for line in lines {
        let bars: Vec<Option<f64>> = line.values.chunks(folded).map(highest).collect();
        out.push_str(&format!("\n{}\n", line.title));
        for row in (0..ROWS).rev() {
            let label = match row {
                0 => &labels[1],
                row if row == ROWS - 1 => &labels[0],
                _ => "",
            };
            let cells: String = bars
                .iter()
                .flat_map(|value| std::iter::repeat_n(cell(*value, low, high, row), bar))
                .collect();
            out.push_str(format!("{label:>margin$}│{cells}", margin = margin - 1).trim_end());
            out.push('\n');
        }
        out.push_str(&axis(margin, bars.len() * bar, from, to));
    }
    if !notes.is_empty() {
        out.push_str(&format!("({})\n", notes.join("; ")));
    }
    out
}

fn highest(values: &[Option<f64>]) -> Option<f64> {
    values.iter().flatten().copied().reduce(f64::max)
}

/// The character of a bar in one row. A value shows at least one eighth, even zero;
/// a gap shows nothing.
fn cell(value: Option<f64>, low: f64, high: f64, row: usize) -> char {
    let Some(value) = value else { return ' ' };
    let whole = ROWS * PARTS.len();
    let share = if high > low { (value - low) / (high - low) } else { 0.0 };
    let parts = ((share * whole as f64).round() as usize).clamp(1, whole);
    match parts.saturating_sub(row * PARTS.len()) {
        0 => ' ',
        parts => PARTS[parts.min(PARTS.len()) - 1],
    }
}

/// The horizontal axis, with the times below its ends.
fn axis(margin: usize, width: usize, from: &str, to: &str) -> String {
    let ground = "─".repeat(width);
    let room = width.max(from.len() + 1 + to.len()) - from.len();
    format!("{:margin$}└{ground}\n{:margin$} {from}{to:>room$}\n", "", "", margin = margin - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(values: &[Option<f64>], width: usize) -> Vec<String> {
        let line = PlotLine { title: "m: count".to_owned(), values: values.to_vec() };
        draw(&[line], "10:00", "15:00", width).lines().map(str::to_owned).collect()
    }

    /// The lowest row of the bars, one character for each.
    fn ground(lines: &[String]) -> String {
        let row = &lines[1 + ROWS];
        row.split_once('│').map_or("", |(_, cells)| cells).to_owned()
    }

    #[test]
    fn a_window_without_data_is_a_gap() {
        // Six buckets share the width, and a bar is at most six characters wide.
        let lines = drawn(&[Some(1.0), None, Some(4.0), None, None, Some(2.0)], 80);
        assert_eq!(
            ground(&lines),
            format!(
                "{}{}{}{}{}",
                "█".repeat(6),
                " ".repeat(6),
                "█".repeat(6),
                " ".repeat(12),
                "█".repeat(6)
            )
        );
        assert_eq!(lines[1], "m: count");
        assert!(lines[2].starts_with("4│            ██████"), "{lines:?}");
    }

    #[test]
    fn the_axis_begins_at_zero_or_says_where() {
        let lines = drawn(&[Some(596.0), Some(1022.0)], 40);
        assert_eq!(
            ground(&lines).chars().filter(|c| *c == '█').count(),
            12,
            "half of the highest is no fall to nothing: {lines:?}"
        );
        assert!(lines[1 + ROWS].starts_with("    0│"), "{lines:?}");
        let lines = drawn(&[Some(-5.0), Some(3.0)], 40);
        assert_eq!(lines.last().map(String::as_str), Some("(the axis begins at -5)"));
    }

    #[test]
    fn one_point_a_constant_and_zero_are_seen() {
        assert_eq!(ground(&drawn(&[Some(7.0)], 80)), "██████");
        assert_eq!(ground(&drawn(&[Some(1.0); 3], 80)), "█".repeat(18));
        assert_eq!(ground(&drawn(&[Some(0.0), None, Some(0.0)], 80)), "▁▁▁▁▁▁      ▁▁▁▁▁▁");
        assert!(drawn(&[None, None], 80).is_empty());
    }

    #[test]
    fn a_drawing_is_as_wide_as_the_terminal() {
        for width in [40, 80, 200] {
            for windows in [1, 10, 33, 500, 5_000] {
                let values: Vec<_> = (0..windows).map(|n| Some(f64::from(n))).collect();
                let lines = drawn(&values, width);
                let widest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
                assert!(widest <= width, "{windows} windows in {width}: {widest}");
                assert_eq!(
                    windows as usize > width,
                    lines.last().is_some_and(|line| line.contains("highest of")),
                    "{windows} {width}"
                );
            }
        }
    }

    #[test]
    fn all_lines_have_one_scale() {
        let lines = [("a", 1.0), ("b", 100.0)]
            .map(|(title, value)| PlotLine { title: title.to_owned(), values: vec![Some(value)] });
        let drawn = draw(&lines, "f", "t", 60);
        assert_eq!(drawn.matches("100│").count(), 2, "{drawn}");
        assert!(drawn.contains("▁▁▁▁▁▁") && drawn.contains("██████"), "{drawn}");
    }
}
