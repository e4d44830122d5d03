//! JSON pointers (RFC 6901) into the properties of an event.

use crate::model::json_member::MemberName;

/// Longest pointer, in bytes.
pub const MAX_POINTER_BYTES: usize = 256;

/// A pointer, split into its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPointer {
    text: String,
    steps: Vec<PointerStep>,
}

/// One step down: into an object by name, into an array by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointerStep {
    /// The name of a member.
    pub name: MemberName,
    /// `None` if the name is no number of an element.
    pub number: Option<usize>,
}

impl JsonPointer {
    /// Parses a pointer.
    ///
    /// # Errors
    /// What is wrong, for people: a missing `/`, an unknown escape, or too many bytes.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_POINTER_BYTES {
            return Err(format!("a pointer has at most {MAX_POINTER_BYTES} bytes"));
        }
        let steps = match text.strip_prefix('/') {
            Some(steps) => steps.split('/').map(step).collect::<Option<_>>(),
            None if text.is_empty() => Some(Vec::new()),
            None => {
                return Err(format!(
                    "a pointer begins with /: write {:?}",
                    format!("/{}", text.strip_prefix("properties.").unwrap_or(text))
                ));
            }
        };
        let steps = steps.ok_or("in a pointer, ~0 stands for ~ and ~1 for /")?;
        Ok(Self { text: text.to_owned(), steps })
    }

    /// The pointer as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The steps from the outermost value down.
    pub fn steps(&self) -> &[PointerStep] {
        &self.steps
    }
}

/// `None` if a tilde is followed by anything but 0 or 1.
fn step(text: &str) -> Option<PointerStep> {
    let mut parts = text.split('~');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escape, rest) = part.split_at_checked(1)?;
        name.push(match escape {
            "0" => '~',
            "1" => '/',
            _ => return None,
        });
        name.push_str(rest);
    }
    // A leading zero is a name: RFC 6901 has one spelling of each number.
    let is_number =
        name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    let number = is_number.then(|| name.parse().ok()).flatten();
    Some(PointerStep { name: MemberName::new(name), number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_the_rfc() {
        let names = |text: &str| -> Vec<String> {
            let pointer = JsonPointer::parse(text).expect("a pointer");
            assert_eq!(pointer.text(), text);
            pointer.steps().iter().map(|step| step.name.as_str().to_owned()).collect()
        };
        assert_eq!(names(""), [""; 0]);
        assert_eq!(names("/"), [""]);
        assert_eq!(names("/a~1b/~0~01/ä"), ["a/b", "~~1", "ä"]);
        let numbers = JsonPointer::parse("/0/10/01/-/x").expect("a pointer");
        let numbers: Vec<_> = numbers.steps().iter().map(|step| step.number).collect();
        assert_eq!(numbers, [Some(0), Some(10), None, None, None]);
    }

    #[test]
    fn mistakes_are_explained() {
        assert!(JsonPointer::parse("plan").expect_err("no slash").contains("\"/plan\""));
        assert!(JsonPointer::parse("properties./plan").expect_err("no slash").contains("/plan"));
        for bad in ["/~", "/~2", "/a~", "/~ä"] {
            assert!(JsonPointer::parse(bad).expect_err(bad).contains("~0"), "{bad}");
        }
        let longest = format!("/{}", "a".repeat(MAX_POINTER_BYTES - 1));
        assert!(JsonPointer::parse(&longest).is_ok());
        assert!(JsonPointer::parse(&format!("{longest}a")).expect_err("long").contains("256"));
    }
}
