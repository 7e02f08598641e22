//! Text in columns, each as wide as its widest cell. A cell may be shown in colour, which takes no room.

use std::fmt::Display;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

pub struct Cell {
    /// What its width is counted from.
    pub text: String,
    pub shown: String,
}

impl Cell {
    pub fn plain(value: impl Display) -> Cell {
        let text = value.to_string();
        Cell { shown: text.clone(), text }
    }
}

/// The line of the headings, then a line for each row.
pub fn columns(head: &[(&str, Side)], rows: Vec<Vec<Cell>>) -> Vec<String> {
    let heading = head.iter().map(|(name, _)| Cell::plain(name)).collect();
    let lines: Vec<Vec<Cell>> = std::iter::once(heading).chain(rows).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let shown = |line: &Vec<Cell>| {
        let cells = line.iter().zip(head).zip(&widths).map(|((cell, (_, side)), width)| {
            let room = " ".repeat(width.saturating_sub(cell.text.chars().count()));
            match side {
                Side::Left => format!("{}{room}", cell.shown),
                Side::Right => format!("{room}{}", cell.shown),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_below_each_other() {
        let rows = vec![
            vec![Cell::plain(1), Cell { text: "ab".into(), shown: "<ab>".into() }, Cell::plain("x")],
            vec![Cell::plain(100), Cell::plain("abcde"), Cell::plain("")],
        ];
        let head = [("n", Side::Right), ("word", Side::Left), ("z", Side::Left)];
        assert_eq!(columns(&head, rows), ["  n  word   z", "  1  <ab>     x", "100  abcde"]);
    }
}
