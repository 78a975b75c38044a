//! One chart: what each gateway costs, row by row, as a multiple of Isthmus. Plain SVG that takes the colours of its surroundings'
//! scheme, light or dark.

use std::fmt::Write as _;

use crate::gateways::Kind;
use crate::report::{KINDS, Results};

/// The rows that are drawn, with short titles.
const ROWS: [(&str, &str); 12] = [
    ("h2-h2", "HTTP/2, h2 upstream"),
    ("h2-h1", "HTTP/2, h1 upstream"),
    ("h1-h2", "HTTP/1.1, h2 upstream"),
    ("h1-h1", "HTTP/1.1, h1 upstream"),
    ("grpc-h2", "gRPC unary"),
    ("down-h2", "1 MiB down"),
    ("up-h2", "1 MiB up"),
    ("echo", "opaque echo"),
    ("opaque-down", "opaque bulk down"),
    ("opaque-up", "opaque bulk up"),
    ("handshake", "full mTLS handshake"),
    ("idle", "idle connection, memory"),
];

const LEFT: f64 = 190.0;
const WIDTH: f64 = 860.0;
const BAR: f64 = 9.0;
const GAP: f64 = 14.0;
const TOP: f64 = 64.0;
/// Bars longer than this many times Isthmus are cut, and say how long they would be.
const MOST: f64 = 4.0;

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Isthmus => "i",
        Kind::Floor => "f",
        Kind::Haproxy => "h",
        Kind::Nginx => "n",
        Kind::Envoy => "e",
    }
}

/// Draws what there is.
pub(crate) fn draw(results: &Results) -> String {
    let mut body = String::new();
    let mut y = TOP;
    let scale = (WIDTH - LEFT - 70.0) / MOST;
    for (name, title) in ROWS {
        let Some(ours) = results.figure(name, Kind::Isthmus) else { continue };
        let bars: Vec<(Kind, f64)> =
            KINDS.iter().filter_map(|kind| Some((*kind, results.figure(name, *kind)?))).collect();
        let middle = y + BAR * bars.len() as f64 / 2.0 + 4.0;
        writeln!(body, r#"<text class="t" x="{:.0}" y="{middle:.1}" text-anchor="end">{title}</text>"#, LEFT - 10.0)
            .expect("text");
        for (kind, figure) in bars {
            let times = figure / ours;
            let length = times.min(MOST) * scale;
            let cut = if times > MOST { format!(" ({times:.1} ×)") } else { String::new() };
            writeln!(
                body,
                r#"<rect class="{}" x="{LEFT}" y="{y:.1}" width="{length:.1}" height="{:.1}"/><text class="v" x="{:.1}" y="{:.1}">{}{cut}</text>"#,
                class(kind),
                BAR - 1.0,
                LEFT + length + 4.0,
                y + BAR - 2.0,
                figure_text(figure),
            )
            .expect("text");
            y += BAR;
        }
        y += GAP;
    }
    let mut legend = String::new();
    for (at, kind) in KINDS.iter().enumerate() {
        let x = LEFT + at as f64 * 120.0;
        writeln!(
            legend,
            r#"<rect class="{}" x="{x}" y="34" width="11" height="11"/><text class="t" x="{}" y="44">{kind}</text>"#,
            class(*kind),
            x + 16.0
        )
        .expect("text");
    }
    let line = LEFT + scale;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0}" width="{WIDTH}" height="{y:.0}" role="img" aria-label="Cost of each gateway">
<style>
text {{ font-family: system-ui, sans-serif; fill: #24292f }}
.title {{ font-size: 15px; font-weight: 600 }} .t {{ font-size: 12px }} .v {{ font-size: 8px; fill: #57606a }}
.one {{ stroke: #57606a; stroke-width: 1; stroke-dasharray: 3 3 }}
.i {{ fill: #0969da }} .f {{ fill: #8c959f }} .h {{ fill: #bc4c00 }} .n {{ fill: #1a7f37 }} .e {{ fill: #8250df }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3 }} .v {{ fill: #9198a1 }} .one {{ stroke: #9198a1 }}
.i {{ fill: #58a6ff }} .f {{ fill: #6e7681 }} .h {{ fill: #f0883e }} .n {{ fill: #3fb950 }} .e {{ fill: #bc8cff }}
}}
</style>
<text class="title" x="{LEFT}" y="20">CPU of the gateway for the same work (µs; last row KiB): shorter is better</text>
{legend}<line class="one" x1="{line:.1}" y1="{:.0}" x2="{line:.1}" y2="{:.0}"/>
{body}</svg>
"#,
        TOP - 6.0,
        y - GAP + 4.0,
    )
}

fn figure_text(figure: f64) -> String {
    if figure >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.1}") }
}
