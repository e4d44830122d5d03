//! Several JSON pointers read in one go: each object on their way is scanned once, however many
//! pointers lead through it.

use smallvec::SmallVec;

use crate::model::json_member::is_name;
use crate::model::json_scan::{self, JsonMembers};
use crate::rules::{JsonPointer, PropertyValue, json_value};

/// Pointers, merged by their first steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PointerTree {
    /// The number of the pointer that ends here.
    leaves: Vec<usize>,
    below: Vec<Branch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Branch {
    name: String,
    number: Option<usize>,
    tree: PointerTree,
}

impl PointerTree {
    /// Adds a pointer, whose value [`Self::read`] stores under `number`.
    pub(super) fn add(&mut self, pointer: &JsonPointer, number: usize) {
        let mut tree = self;
        for step in pointer.steps() {
            let at = tree.below.iter().position(|branch| branch.name == step.name.as_str());
            let at = at.unwrap_or_else(|| {
                tree.below.push(Branch {
                    name: step.name.as_str().to_owned(),
                    number: step.number,
                    tree: Self::default(),
                });
                tree.below.len() - 1
            });
            tree = &mut tree.below[at].tree;
        }
        tree.leaves.push(number);
    }

    /// Reads what the pointers lead to in a value, into the places of their numbers. Of equal names
    /// in one object the last counts. What is missing or null stays as it was.
    pub(super) fn read<'a>(&self, value: &'a [u8], found: &mut [Option<PropertyValue<'a>>]) {
        for leaf in &self.leaves {
            if let Some(place) = found.get_mut(*leaf) {
                *place = json_value(value);
            }
        }
        if self.below.is_empty() {
            return;
        }
        match value.first() {
            Some(b'{') => self.read_merged(&[value], found),
            Some(b'[') => {
                for branch in &self.below {
                    let element =
                        branch.number.and_then(|number| json_scan::element(value, 0, number));
                    element.inspect(|element| branch.tree.read(&value[element.clone()], found));
                }
            }
            _ => {}
        }
    }

    /// Like [`Self::read`], in several objects as if their members stood in one. Pointers to the whole
    /// are not looked at.
    pub(super) fn read_merged<'a>(
        &self,
        objects: &[&'a [u8]],
        found: &mut [Option<PropertyValue<'a>>],
    ) {
        let mut values: SmallVec<[Option<&[u8]>; 16]> = SmallVec::new();
        values.resize(self.below.len(), None);
        for object in objects {
            for member in JsonMembers::of(object, 0).map_while(Result::ok) {
                let name = &object[member.name];
                let at = self.below.iter().position(|branch| is_name(name, &branch.name));
                if let Some(at) = at {
                    values[at] = Some(&object[member.value]);
                }
            }
        }
        for (branch, value) in self.below.iter().zip(values) {
            value.inspect(|value| branch.tree.read(value, found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pointers: &[&str], json: &str) -> Vec<Option<String>> {
        let mut tree = PointerTree::default();
        for (number, pointer) in pointers.iter().enumerate() {
            tree.add(&JsonPointer::parse(pointer).expect("a pointer"), number);
        }
        let mut found = vec![None; pointers.len()];
        tree.read(json.as_bytes(), &mut found);
        found.into_iter().map(|value| Some(value?.text()?.into_owned())).collect()
    }

    #[test]
    fn pointers_share_their_way() {
        let json = r#"{"a":{"x":1,"y":"two","l":[0,{"z":true}]},"b":null,"a~/":"t","c":7}"#;
        let pointers = ["/a/x", "/a/y", "/a/l/1/z", "/b", "/a~0~1", "/c", "/c", "/a/l/9", "/a"];
        let expected = [
            Some("1"),
            Some("two"),
            Some("true"),
            None,
            Some("t"),
            Some("7"),
            Some("7"),
            None,
            None,
        ];
        assert_eq!(read(&pointers, json), expected.map(|text| text.map(str::to_owned)));
    }

    #[test]
    fn of_equal_names_the_last_counts() {
        let json = r#"{"a":{"x":1,"y":2},"\u0061":{"x":3}}"#;
        assert_eq!(read(&["/a/x", "/a/y"], json), [Some("3".to_owned()), None]);
    }

    #[test]
    fn what_is_no_json_gives_nothing() {
        for json in ["", "{", r#"{"a":"#, r#"{"a":nul}"#, "[", "7", r#"{"a":{"b":"#] {
            assert_eq!(read(&["/a", "/a/b", "/0"], json).iter().flatten().count(), 0, "{json}");
        }
    }
}
