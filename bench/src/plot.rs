//! The plot of a benchmark: jobs/s of fleet over each peer, case by case, as an SVG that
//! is readable on light and dark ground. It knows ratios and names, not how they came.

use std::fmt::Write;

use crate::stats::Spread;

/// What is drawn.
#[derive(Debug)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// How it was measured.
    pub subtitle: String,
    /// Peers, in the order of the bars and colours.
    pub peers: Vec<String>,
    /// Groups of bars.
    pub groups: Vec<Group>,
}

/// The bars of one case.
#[derive(Debug)]
pub struct Group {
    /// The case in words.
    pub label: String,
    /// Ratio to each peer, by its place; a peer that cannot has none.
    pub bars: Vec<(usize, Spread)>,
}

const WIDTH: f64 = 960.0;
/// Where the bars begin; names stand before.
const LEFT: f64 = 330.0;
/// Where the axis ends; figures stand behind.
const RIGHT: f64 = 860.0;
const BAR: f64 = 11.0;
const GAP: f64 = 9.0;
const TOP: f64 = 92.0;
/// Colours of the peers: of middle lightness, so they stand out from both grounds.
const COLOURS: [&str; 8] =
    ["#3b82c4", "#d9822b", "#2f9e6e", "#c2549d", "#8a6fd1", "#b59a1c", "#d1495b", "#5f8a8b"];
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.t{font-size:16px;font-weight:600}\
.s{fill:#59636e}.g{stroke:#8c959f;stroke-opacity:.35}.one{stroke:#1f2328;stroke-width:1.5}\
.w{stroke:#1f2328}.bg{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}\
.one,.w{stroke:#e6edf3}.bg{fill:#0d1117}}";

impl Plot {
    /// The document.
    #[must_use]
    pub fn svg(&self) -> String {
        let axis = Axis::around(self.groups.iter().flat_map(|group| group.bars.iter().map(|(_, bar)| *bar)));
        let bars: usize = self.groups.iter().map(|group| group.bars.len()).sum();
        let bottom = TOP + count(bars) * BAR + count(self.groups.len()) * GAP;
        let mut svg = String::new();
        self.head(&mut svg, bottom + 40.0);
        axis.lines(&mut svg, bottom);
        let mut y = TOP;
        for group in &self.groups {
            let middle = y + count(group.bars.len()) * BAR / 2.0 + 4.0;
            text(&mut svg, LEFT - 10.0, middle, "end", "", &group.label);
            for (peer, spread) in &group.bars {
                bar(&mut svg, &axis, y, COLOURS[peer % COLOURS.len()], *spread);
                y += BAR;
            }
            y += GAP;
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn head(&self, svg: &mut String, height: f64) {
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" \
             aria-label=\"{}\"><style>{STYLE}</style><rect class=\"bg\" width=\"{WIDTH}\" height=\"{height:.0}\"/>",
            escaped(&self.title)
        );
        text(svg, 20.0, 26.0, "start", "t", &self.title);
        text(svg, 20.0, 44.0, "start", "s", &self.subtitle);
        let step = (WIDTH - 40.0) / count(self.peers.len().max(1));
        for (place, peer) in self.peers.iter().enumerate() {
            let x = 20.0 + count(place) * step;
            let colour = COLOURS[place % COLOURS.len()];
            let _ =
                writeln!(svg, "<rect x=\"{x:.1}\" y=\"56\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
            text(svg, x + 15.0, 65.0, "start", "", peer);
        }
    }
}

/// A logarithmic axis of ratios.
struct Axis {
    least: f64,
    most: f64,
}

const MARKS: [f64; 13] = [0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0, 100.0, 1000.0];

impl Axis {
    /// From a mark at or below all bars to one at or above; 1 is always in it.
    fn around(bars: impl Iterator<Item = Spread>) -> Self {
        let (mut low, mut high) = (1.0_f64, 2.0_f64);
        for bar in bars {
            (low, high) = (low.min(bar.min), high.max(bar.max));
        }
        let least = MARKS.iter().rev().copied().find(|mark| *mark <= low).unwrap_or(MARKS[0]);
        let most = MARKS.iter().copied().find(|mark| *mark >= high).unwrap_or(1000.0);
        Self { least, most }
    }

    fn x(&self, ratio: f64) -> f64 {
        let share = (ratio.clamp(self.least, self.most) / self.least).ln() / (self.most / self.least).ln();
        LEFT + share * (RIGHT - LEFT)
    }

    fn lines(&self, svg: &mut String, bottom: f64) {
        for mark in MARKS.iter().filter(|mark| (self.least..=self.most).contains(*mark)) {
            let x = self.x(*mark);
            let class = if *mark == 1.0 { "one" } else { "g" };
            let _ = writeln!(
                svg,
                "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>",
                TOP - 6.0
            );
            text(svg, x, bottom + 16.0, "middle", "s", &format!("{mark}x"));
        }
    }
}

/// A bar from 1 to the median, a whisker from the smallest to the largest.
fn bar(svg: &mut String, axis: &Axis, y: f64, colour: &str, spread: Spread) {
    let (one, median) = (axis.x(1.0), axis.x(spread.median));
    let (from, width) = (one.min(median), (median - one).abs().max(1.0));
    let (low, high, middle) = (axis.x(spread.min), axis.x(spread.max), y + BAR / 2.0);
    let _ = writeln!(
        svg,
        "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
         <line class=\"w\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
        y + 1.0,
        BAR - 2.0
    );
    text(svg, high.max(one) + 6.0, middle + 4.0, "start", "s", &format!("{:.2}", spread.median));
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, words: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(words)
    );
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn count(of: usize) -> f64 {
    of as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(groups: Vec<Group>) -> Plot {
        Plot {
            title: "a < b & \"c\"".to_owned(),
            subtitle: "measured".to_owned(),
            peers: vec!["npm bullmq".to_owned(), "oxana".to_owned()],
            groups,
        }
    }

    fn spread(median: f64) -> Spread {
        Spread { median, min: median * 0.9, max: median * 1.2, count: 5 }
    }

    /// Every element that is opened is closed in order, and no stray bracket stands in
    /// text.
    fn is_well_formed(svg: &str) -> bool {
        let mut open = Vec::new();
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            if rest[..start].contains('>') {
                return false;
            }
            let Some(end) = rest[start..].find('>') else { return false };
            let tag = &rest[start + 1..start + end];
            if tag.matches('"').count() % 2 == 1 || tag.contains('<') {
                return false;
            }
            if let Some(name) = tag.strip_prefix('/') {
                if open.pop() != Some(name) {
                    return false;
                }
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().unwrap_or(tag));
            }
            rest = &rest[start + end + 1..];
        }
        open.is_empty() && !rest.contains('>')
    }

    #[test]
    fn the_document_is_well_formed_and_names_what_it_shows() {
        let group =
            Group { label: "drain & keep".to_owned(), bars: vec![(0, spread(4.0)), (1, spread(0.3))] };
        let svg = plot(vec![group]).svg();
        assert!(is_well_formed(&svg), "{svg}");
        assert!(svg.contains("drain &amp; keep") && svg.contains(">4.00<") && svg.contains("oxana"));
        assert!(svg.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn a_plot_of_nothing_and_one_of_extremes_are_documents_too() {
        assert!(is_well_formed(&plot(Vec::new()).svg()));
        let group = Group { label: String::new(), bars: vec![(7, spread(1e9)), (9, spread(1e-9))] };
        let svg = plot(vec![group]).svg();
        assert!(is_well_formed(&svg) && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn the_check_finds_what_is_not_well_formed() {
        assert!(!is_well_formed("<a><b></a></b>") && !is_well_formed("<a>") && !is_well_formed("<a/>>"));
    }

    #[test]
    fn equal_steps_on_the_axis_are_equal_factors() {
        let axis = Axis { least: 1.0, most: 100.0 };
        let step = axis.x(10.0) - axis.x(1.0);
        assert!((axis.x(100.0) - axis.x(10.0) - step).abs() < 1e-9);
    }
}
