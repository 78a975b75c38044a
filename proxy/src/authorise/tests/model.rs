//! The decision as one would write it who has all the time in the world: from the operator's words, rule by rule, label by
//! label, with nothing compiled, nothing shared with the code it judges, and nothing clever.

use crate::authorise::{Action, DefaultAction, HttpSettings, Mode, RuleSettings, Settings};

use super::{Question, Request};

/// No, and why one cannot be sure, and yes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Three {
    No,
    Unsure(Why),
    Yes,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Why {
    Path,
    Unreadable,
    Other,
}

fn all(answers: &[Three]) -> Three {
    if answers.contains(&Three::No) {
        return Three::No;
    }
    let doubts = answers.iter().filter_map(|answer| if let Three::Unsure(why) = answer { Some(*why) } else { None });
    doubts.min().map_or(Three::Yes, Three::Unsure)
}

fn any(answers: &[Three]) -> Three {
    if answers.contains(&Three::Yes) {
        return Three::Yes;
    }
    let doubts = answers.iter().filter_map(|answer| if let Three::Unsure(why) = answer { Some(*why) } else { None });
    doubts.min().map_or(Three::No, Three::Unsure)
}

fn sure(holds: bool) -> Three {
    if holds { Three::Yes } else { Three::No }
}

/// The decision in the words of the table.
pub(super) fn decide(settings: &Settings, question: &Question) -> String {
    let refused = |text: String| if settings.mode == Mode::Audit { format!("audit {text}") } else { text };
    if settings.exported_only && !question.exported {
        return refused("not_exported".to_owned());
    }
    let mut rules: Vec<&RuleSettings> = settings.rules.iter().collect();
    rules.sort_by_key(|rule| (std::cmp::Reverse(weight(rule)), rule.name.clone()));
    let ask = |rule: &RuleSettings| holds(rule, question, &settings.trust_domains);
    let code =
        |answer| if let Three::Unsure(Why::Path | Why::Unreadable) = answer { "ambiguous_path" } else { "denied" };
    let mut audited = None;
    for rule in rules.iter().filter(|rule| rule.action == Action::Deny) {
        let answer = ask(rule);
        match (answer, rule.mode) {
            (Three::No, _) => {}
            (_, Mode::Enforce) => return refused(format!("{} {}", code(answer), rule.name)),
            (_, Mode::Audit) => {
                audited.get_or_insert_with(|| format!("audit {} {}", code(answer), rule.name));
            }
        }
    }
    let allow: Vec<&RuleSettings> = rules.into_iter().filter(|rule| rule.action == Action::Allow).collect();
    if let Some(rule) = allow.iter().find(|rule| ask(rule) == Three::Yes) {
        return audited.unwrap_or_else(|| format!("allow {}", rule.name));
    }
    if settings.default == DefaultAction::Authenticated {
        return audited.unwrap_or_else(|| "allow -".to_owned());
    }
    if let Some(rule) = allow.iter().find(|rule| ask(rule) == Three::Unsure(Why::Path)) {
        return refused(format!("ambiguous_path {}", rule.name));
    }
    if allow.iter().any(|rule| ask(rule) == Three::Unsure(Why::Unreadable)) {
        return refused("ambiguous_path".to_owned());
    }
    refused("no_rule".to_owned())
}

fn holds(rule: &RuleSettings, question: &Question, trust_domains: &[String]) -> Three {
    let identity = question.client.identity.as_str();
    let client = rule.clients.as_ref().is_none_or(|list| list.iter().any(|p| client_fits(p, identity, trust_domains)));
    let (name, port) = (question.target.name.as_str(), question.target.port);
    let service =
        rule.services.as_ref().is_none_or(|list| list.iter().any(|p| service_fits(p, name, Some(port)) == Three::Yes));
    let network = rule.networks.as_ref().is_none_or(|list| {
        let address = question.client.network.to_canonical();
        let inside = |cidr: &String| match cidr.parse::<ipnet::IpNet>() {
            Ok(net) => net.contains(&address),
            Err(_) => cidr.parse::<std::net::IpAddr>().expect("a network or an address") == address,
        };
        list.iter().any(|network| inside(&network.cidr) && !network.except.iter().any(inside))
    });
    let mut answers = vec![sure(client), sure(service), sure(network)];
    let http = rule.http.clone().unwrap_or_default();
    match &question.request {
        None if rule.grpc.is_some() || http != HttpSettings::default() => answers.push(Three::Unsure(Why::Other)),
        None => {}
        Some(request) => {
            answers.push(http.methods.as_ref().map_or(Three::Yes, |list| {
                any(&list.iter().map(|method| alike(method, request.method.as_str())).collect::<Vec<_>>())
            }));
            answers.push(http.paths.as_ref().map_or(Three::Yes, |list| path_fits(list, &request.path)));
            answers.push(http.hosts.as_ref().map_or(Three::Yes, |list| host_fits(list, request)));
            for (name, values) in http.headers.iter().flatten() {
                answers.push(header_fits(name, values, request));
            }
            if let Some(grpc) = &rule.grpc {
                let methods = grpc.methods.clone().unwrap_or_else(|| vec!["*".to_owned()]);
                let paths: Vec<String> = methods.iter().map(|method| format!("=/{}/{method}", grpc.service)).collect();
                let marked = request.grpc && request.method == http::Method::POST;
                answers.push(path_fits(&paths, &request.path));
                answers.push(if marked { Three::Yes } else { Three::Unsure(Why::Other) });
            }
        }
    }
    all(&answers)
}

fn alike(want: &str, is: &str) -> Three {
    match want == is {
        true => Three::Yes,
        false if want.eq_ignore_ascii_case(is) => Three::Unsure(Why::Other),
        false => Three::No,
    }
}

fn header_fits(name: &str, values: &[String], request: &Request) -> Three {
    let lines: Vec<&str> =
        request.headers.get_all(name).iter().map(|value| value.to_str().expect("tests send text")).collect();
    let exact = |line: &&str| values.iter().any(|value| value == "*" || value == line);
    let near = |line: &&str| {
        exact(line)
            || values
                .iter()
                .any(|v| v.eq_ignore_ascii_case(line) || line.split(',').any(|m| v.eq_ignore_ascii_case(m.trim())))
    };
    match lines.is_empty() {
        true => Three::No,
        false if lines.iter().all(exact) => Three::Yes,
        false if lines.iter().any(near) => Three::Unsure(Why::Other),
        false => Three::No,
    }
}

fn host_fits(list: &[String], request: &Request) -> Three {
    let Some(host) = &request.host else { return Three::Unsure(Why::Other) };
    let (name, port) = host.split_once(':').map_or((host.as_str(), None), |(name, port)| (name, Some(port)));
    let port = match port.map(str::parse::<u16>) {
        Some(Err(_)) => return Three::Unsure(Why::Other),
        Some(Ok(port)) => Some(port),
        None => None,
    };
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Three::Unsure(Why::Other);
    }
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    any(&list.iter().map(|pattern| service_fits(pattern, name, port)).collect::<Vec<_>>())
}

fn service_fits(pattern: &str, name: &str, port: Option<u16>) -> Three {
    let (pattern, want) = pattern.split_once(':').map_or((pattern, "*"), |(name, port)| (name, port));
    let pattern = pattern.to_ascii_lowercase();
    let pattern = pattern.strip_suffix('.').unwrap_or(&pattern);
    let fits = pattern == "*" || !ways(&split(pattern), &split(name)).is_empty();
    match (want, port) {
        _ if !fits => Three::No,
        ("*", _) => Three::Yes,
        (want, Some(is)) => sure(want == is.to_string()),
        (_, None) => Three::Unsure(Why::Other),
    }
}

fn split(name: &str) -> Vec<&str> {
    name.split('.').collect()
}

/// All ways in which a pattern can be laid over labels: for each, the labels that wildcards stand for.
fn ways(pattern: &[&str], labels: &[&str]) -> Vec<Vec<usize>> {
    fn lay(pattern: &[&str], labels: &[&str], at: usize, wild: Vec<usize>, found: &mut Vec<Vec<usize>>) {
        match (pattern.split_first(), labels.get(at)) {
            (None, None) => found.push(wild),
            (Some((&"*", rest)), Some(_)) => lay(rest, labels, at + 1, [wild, vec![at]].concat(), found),
            (Some((&"**", rest)), Some(_)) => {
                for end in at + 1..=labels.len() {
                    lay(rest, labels, end, wild.iter().copied().chain(at..end).collect(), found);
                }
            }
            (Some((first, rest)), Some(label)) if first == label => lay(rest, labels, at + 1, wild, found),
            _ => {}
        }
    }
    let mut found = Vec::new();
    lay(pattern, labels, 0, Vec::new(), &mut found);
    found
}

fn client_fits(pattern: &str, identity: &str, trust_domains: &[String]) -> bool {
    if pattern == "*" {
        return true;
    }
    if !pattern.contains('*') {
        return pattern == identity;
    }
    if let Some((scheme, rest)) = pattern.split_once("://") {
        let want: Vec<String> = rest.split('/').map(str::to_owned).collect();
        let Some((is_scheme, is)) = identity.split_once("://") else { return false };
        let is: Vec<&str> = is.split('/').collect();
        let below = want.last().is_some_and(|last| last == "*");
        return scheme.eq_ignore_ascii_case(is_scheme)
            && want[0].eq_ignore_ascii_case(is[0])
            && (is.len() == want.len() || below && is.len() > want.len())
            && want.iter().zip(&is).skip(1).all(|(want, is)| want == "*" || want == is);
    }
    if identity.contains("://") {
        return false;
    }
    let labels = split(identity);
    let shapes: Vec<usize> =
        (1..labels.len()).filter(|at| labels[at - 1] == "serviceaccount" && labels[*at] == "identity").collect();
    // `identity` and the system's namespace stand before the trust domain.
    let domain = shapes.first().map_or(labels.len(), |at| at + 2);
    let lower = pattern.to_ascii_lowercase();
    if lower.ends_with(".**") {
        return shapes.len() <= 1 && !ways(&split(&lower), &labels).is_empty();
    }
    let Some(body) = lower.strip_suffix(".*") else {
        return ways(&split(&lower), &labels).iter().any(|wild| wild.iter().all(|at| *at < domain));
    };
    trust_domains.iter().any(|known| {
        let whole = if body.ends_with(".identity") { format!("{body}.*.{known}") } else { format!("{body}.{known}") };
        ways(&split(&whole), &labels).iter().any(|wild| wild.iter().all(|at| *at < domain))
    })
}

/// Whether one of the patterns fits, as the path was sent and as it is resolved.
fn path_fits(patterns: &[String], sent: &str) -> Three {
    let sent = sent.split('?').next().expect("a split has a first part");
    if sent == "*" {
        return Three::No;
    }
    let Some((plain, normal)) = sent.strip_prefix('/').and_then(readings) else {
        return Three::Unsure(Why::Unreadable);
    };
    let fits = |path: &[String]| any(&patterns.iter().map(|pattern| pattern_fits(pattern, path)).collect::<Vec<_>>());
    match (fits(&plain), fits(&normal)) {
        (one, other) if one == other => one,
        _ => Three::Unsure(Why::Path),
    }
}

/// The segments as sent, in one spelling, and as resolved.
fn readings(sent: &str) -> Option<(Vec<String>, Vec<String>)> {
    let plain = sent.split('/').map(spell).collect::<Option<Vec<String>>>()?;
    let bare: Vec<String> = plain.iter().map(|s| s.split(';').next().expect("a first part").to_owned()).collect();
    let dots = |s: &str| s == "." || s == "..";
    if plain.iter().zip(&bare).any(|(plain, bare)| plain != bare && dots(bare)) {
        return None;
    }
    let (last, front) = bare.split_last().expect("a split has a last part");
    if bare.iter().any(|s| s == "..") && front.iter().any(String::is_empty) {
        return None;
    }
    let mut normal: Vec<String> = Vec::new();
    for segment in &bare {
        match segment.as_str() {
            "" | "." => {}
            ".." => drop(normal.pop()),
            _ => normal.push(segment.clone()),
        }
    }
    if last.is_empty() || dots(last) || normal.is_empty() {
        normal.push(String::new());
    }
    Some((plain, normal))
}

/// A segment in the one spelling, or nothing if servers would disagree about it.
fn spell(segment: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            let byte = u8::from_str_radix(digits, 16).ok()?;
            if b"/\\;".contains(&byte) {
                return None;
            }
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            if !first.is_ascii() || b"\\#".contains(first) {
                return None;
            }
            bytes.push(*first);
            rest = tail;
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    if text.chars().any(|c| c.is_ascii_control()) {
        return None;
    }
    // What is left of an encoding after decoding once was encoded twice.
    let twice = |w: &[u8]| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit();
    if text.as_bytes().windows(3).any(twice) {
        return None;
    }
    let kept = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
    Some(text.bytes().map(|b| if kept(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect())
}

fn pattern_fits(pattern: &str, path: &[String]) -> Three {
    let exact = pattern.strip_prefix('=');
    let body = exact.unwrap_or(pattern).strip_prefix('/').expect("patterns begin with a slash");
    let want: Vec<String> = body.split('/').map(|segment| spell(segment).expect("patterns are readable")).collect();
    let fits = |want: &[String], is: &[String]| {
        want.len() == is.len()
            && want
                .iter()
                .zip(is)
                .all(|(want, is)| if want == "*" { !is.is_empty() } else { want.eq_ignore_ascii_case(is) })
    };
    let same = |want: &[String], is: &[String]| want.iter().zip(is).all(|(want, is)| want == "*" || want == is);
    if exact.is_none() {
        let want = &want[..want.len() - 1];
        return match path.get(..want.len()) {
            Some(front) if !fits(want, front) => Three::No,
            None => Three::No,
            Some(front) if path.len() > want.len() && same(want, front) => Three::Yes,
            Some(_) => Three::Unsure(Why::Path),
        };
    }
    if fits(&want, path) {
        return if same(&want, path) { Three::Yes } else { Three::Unsure(Why::Path) };
    }
    // But for one slash at the end.
    let shorter =
        |path: &[String]| path.split_last().filter(|(last, _)| last.is_empty()).map(|(_, rest)| rest.to_vec());
    let longer = |path: &[String]| [path, &[String::new()]].concat();
    if shorter(path).is_some_and(|path| fits(&want, &path))
        || want.ends_with(&[String::new()]) && fits(&want, &longer(path))
    {
        return Three::Unsure(Why::Path);
    }
    Three::No
}

/// How much a rule says: the order in which rules are named.
fn weight(rule: &RuleSettings) -> [usize; 7] {
    fn least<T>(list: Option<&Vec<T>>, weigh: impl Fn(&T) -> usize) -> usize {
        list.map_or(0, |list| list.iter().map(weigh).min().expect("lists are not empty"))
    }
    let literals = |text: &str, at: char| text.split(at).filter(|part| !matches!(*part, "*" | "**")).count();
    let client = |text: &String| match text.as_str() {
        "*" => 0,
        _ if !text.contains('*') => 1024,
        _ if text.contains("://") => {
            3 + 2 * literals(text.split_once("://").expect("it has a scheme").1, '/').saturating_sub(1)
                + usize::from(!text.ends_with("/*"))
        }
        _ if text.ends_with(".**") => 1 + 2 * literals(text, '.'),
        // The shorter of the two trust domains has as many labels as the longer.
        _ if text.ends_with(".*") => 2 + 2 * (literals(text, '.') + 2),
        _ => 1 + 2 * literals(text, '.') + usize::from(!text.starts_with("**")),
    };
    let service = |text: &String| {
        let (name, port) = text.split_once(':').map_or((text.as_str(), false), |(name, _)| (name, true));
        let name = match name {
            "*" => 0,
            _ if !name.contains('*') => 1024,
            _ => 1 + 2 * literals(name, '.') + usize::from(!name.starts_with("**")),
        };
        2 * name + usize::from(port)
    };
    let path = |text: &String| {
        let body = text.trim_start_matches('=').strip_prefix('/').expect("patterns begin with a slash");
        1 + 2 * literals(body, '/') + usize::from(text.starts_with('='))
    };
    let http = rule.http.clone().unwrap_or_default();
    let paths = match &rule.grpc {
        None => least(http.paths.as_ref(), path),
        Some(grpc) => 4 + 2 * usize::from(grpc.methods.is_some()),
    };
    [
        least(rule.services.as_ref(), service),
        least(rule.clients.as_ref(), client),
        paths,
        usize::from(http.methods.is_some()),
        http.headers.as_ref().map_or(0, |headers| headers.len()),
        usize::from(http.hosts.is_some()),
        usize::from(rule.networks.is_some()),
    ]
}
