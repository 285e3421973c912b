//! The picture: how detection time and cost grow with the number of nodes.
//!
//! One request is run for a row of sizes; the upper chart has the time until every other node knows, the lower one the
//! bytes that a node sends. Both axes of sizes are logarithmic. Never smooths or leaves anything out.

use plotters::prelude::*;

use super::settings::Request;
use super::summary::Summary;
use super::{Failure, trials};
use crate::codes::Code;

/// The sizes that are drawn, as far as the request goes.
const SIZES: [usize; 11] = [8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 10_000];

const SIZE: (u32, u32) = (860, 820);

/// What came of one size.
#[derive(Clone, Debug)]
pub(super) struct Row {
    nodes: usize,
    pub(super) summary: Summary,
}

/// Runs the request for every size up to its own.
pub(super) fn rows(request: &Request, mut say: impl FnMut(&str)) -> Result<Vec<Row>, Failure> {
    let most = request.plan.nodes;
    let sizes = SIZES.into_iter().filter(|size| *size < most).chain([most]);
    let mut rows = Vec::new();
    for nodes in sizes {
        let mut request = request.clone();
        request.plan.nodes = nodes;
        if request.plan.check().is_err() && nodes != most {
            // A fault that names a node, or strikes many, needs a world of its size.
            continue;
        }
        say(&request.words());
        let summary = Summary::of(&request, &trials(&request)?);
        rows.push(Row { nodes, summary });
    }
    Ok(rows)
}

/// The picture of `rows`, as SVG.
pub(super) fn draw(rows: &[Row], request: &Request) -> Result<String, Failure> {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        chart(&area, rows, request)
    };
    drawn.map_err(|reason| Failure::new(Code::Internal, format!("can't draw the plot: {reason}")))?;
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

#[expect(clippy::cast_precision_loss, reason = "a coordinate needs no more than 52 bits")]
fn chart(area: &Area<'_>, rows: &[Row], request: &Request) -> Result<(), String> {
    let text = |error: DrawingAreaErrorKind<std::io::Error>| error.to_string();
    area.fill(&WHITE).map_err(|error| error.to_string())?;
    let (upper, lower) = area.split_vertically(SIZE.1 / 2);
    let kinds: Vec<&'static str> = rows
        .iter()
        .flat_map(|row| row.summary.kinds.keys().copied())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let mut times: Vec<Line> = Vec::new();
    for kind in &kinds {
        let over = |of: fn(&super::summary::Detection) -> Option<f64>| -> Vec<(f64, f64)> {
            let point = |row: &Row| {
                let found = row.summary.kinds.get(kind)?;
                Some((row.nodes as f64, of(found)?))
            };
            rows.iter().filter_map(point).collect()
        };
        let name = |what: &str| format!("{kind}: {what}");
        times.push((name("first node knows, median"), over(|found| found.first.map(|first| first.p50_ms))));
        times.push((name("every node knows, median"), over(|found| found.last.map(|last| last.p50_ms))));
        times.push((name("every node knows, 99 %"), over(|found| found.last.map(|last| last.p99_ms))));
    }
    let cost = |of: fn(&super::summary::CostSummary) -> f64| -> Vec<(f64, f64)> {
        rows.iter().map(|row| (row.nodes as f64, of(&row.summary.cost))).collect()
    };
    let bytes = vec![
        ("mean".to_owned(), cost(|cost| cost.bytes_per_s)),
        ("busiest second".to_owned(), cost(|cost| cost.bytes_per_s_peak)),
    ];
    let title = format!(
        "Time until a fault is known ({} trial{} each, seed {})",
        request.trials,
        super::settings::plural(request.trials as usize),
        request.seed
    );
    let sizes =
        (rows.first().map_or(1, |row| row.nodes) as f64, rows.last().map_or(2, |row| row.nodes) as f64);
    panel(&upper, &title, "milliseconds", sizes, &times).map_err(text)?;
    panel(&lower, "What a node sends", "bytes per second", sizes, &bytes).map_err(text)?;
    area.present().map_err(|error| error.to_string())
}

type Line = (String, Vec<(f64, f64)>);

fn panel(
    area: &Area<'_>,
    title: &str,
    unit: &str,
    (least, most): (f64, f64),
    lines: &[Line],
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let top = lines.iter().flat_map(|(_, points)| points).map(|point| point.1).fold(1.0, f64::max);
    let sizes = (least..most.max(least + 1.0)).log_scale();
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(72)
        .build_cartesian_2d(sizes, 0.0..top * 1.15)?;
    chart
        .configure_mesh()
        .x_desc("nodes")
        .y_desc(unit)
        .x_label_formatter(&|nodes| format!("{nodes:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    for (index, (name, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
        let drawn = chart.draw_series(line)?;
        drawn
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use steadfast_sim::detection::Plan;

    use super::*;

    #[test]
    fn a_picture_has_both_charts_and_every_size() {
        let plan = Plan {
            nodes: 12,
            faults: vec!["silent@2s".parse().unwrap()],
            duration: Duration::from_secs(4),
            ..Plan::default()
        };
        let request = Request { plan, trials: 1, seed: 1, file: None, flags: Vec::new() };
        let mut said = Vec::new();
        let rows = rows(&request, |what| said.push(what.to_owned())).unwrap();
        assert_eq!(rows.iter().map(|row| row.nodes).collect::<Vec<_>>(), [8, 12]);
        assert_eq!(said.len(), 2);
        let svg = draw(&rows, &request).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("silent: every node knows, 99 %") && svg.contains("bytes per second"));
    }
}
