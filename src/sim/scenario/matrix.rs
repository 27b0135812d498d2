//! A scenario for each combination of some values: `[matrix]` lists them, `${name}` stands for them in the rest.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::section::Problem;

/// A name and one of its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub name: String,
    /// As people read it.
    pub value: String,
    /// As TOML writes it.
    literal: String,
}

/// One point of a matrix; empty where there is none.
pub type Variant = Vec<Choice>;

/// Scenarios in one matrix at most.
const MOST: usize = 10_000;
/// Bytes of a scenario beyond which nothing is filled in any more.
const LONGEST: usize = 1 << 20;

/// All combinations, the last name changing fastest.
pub fn variants(root: &DeTable<'_>) -> Result<Vec<Variant>, Problem> {
    let mut variants: Vec<Variant> = vec![Vec::new()];
    let Some(section) = root.get("matrix") else { return Ok(variants) };
    let wrong = |span: std::ops::Range<usize>, what: String| (Some(span), what);
    let DeValue::Table(table) = section.get_ref() else {
        return Err(wrong(section.span(), "matrix: must be a section: [matrix]".into()));
    };
    for (name, values) in table.iter() {
        let name = name.get_ref();
        let right = || format!("matrix.{name}: must be a list of texts or numbers");
        let list = values.get_ref().as_array().filter(|l| !l.is_empty());
        let list = list.ok_or_else(|| wrong(values.span(), right()))?;
        let choices: Vec<Choice> =
            list.iter().map(|v| choice(name, v).ok_or_else(|| wrong(v.span(), right()))).collect::<Result<_, _>>()?;
        if variants.len().saturating_mul(choices.len()) > MOST {
            return Err(wrong(section.span(), format!("matrix: more than {MOST} combinations")));
        }
        variants = variants
            .iter()
            .flat_map(|v| choices.iter().map(move |c| v.iter().cloned().chain([c.clone()]).collect()))
            .collect();
    }
    Ok(variants)
}

fn choice(name: &str, value: &Spanned<DeValue<'_>>) -> Option<Choice> {
    let (value, literal) = match value.get_ref() {
        DeValue::String(s) => (s.to_string(), format!("{s:?}")),
        DeValue::Integer(i) => (i.to_string(), i.to_string()),
        DeValue::Float(f) => (f.to_string(), f.to_string()),
        DeValue::Boolean(b) => (b.to_string(), b.to_string()),
        _ => return None,
    };
    Some(Choice { name: name.to_owned(), value, literal })
}

/// The text with the values in their places. A value that is all of a text becomes the value itself, so that numbers
/// stay numbers. Lines stay lines.
pub fn fill(text: &str, variant: &Variant) -> String {
    variant.iter().fold(text.to_owned(), |text, c| {
        if text.len() > LONGEST {
            // Values that stand for each other: it won't be TOML for long.
            return text;
        }
        let place = format!("${{{}}}", c.name);
        text.replace(&format!("\"{place}\""), &c.literal).replace(&place, &c.value)
    })
}
