//! What proves that nobody had what another had.

use std::collections::{BTreeMap, HashMap};

/// From when to when somebody has something, in seconds.
type Span = (f64, f64);

/// One item of one lease, as the ledger has it; times are microseconds by its clock.
#[derive(Clone, Debug)]
pub struct Grant {
    pub lease: String,
    pub item: u64,
    pub fence: u64,
    pub from: u64,
    pub until: u64,
    /// How it ended.
    pub state: String,
}

/// What a worker noted; times are seconds by the clock that all processes of a machine share.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Note {
    pub lease: String,
    pub fence: u64,
    /// When it knew that it had it; or, without this, when it began to give it back, or to die.
    pub has: Option<f64>,
    pub lets_go: Option<f64>,
    /// Until when it had it at least, whenever it began to let go: from when it had asked.
    pub until: Option<f64>,
    /// When it heard that what it gave back was taken back, or that it had lost it before.
    pub released: Option<f64>,
    pub lost: Option<f64>,
}

/// By the ledger: for each item, a grant begins when the one before has ended, and has a greater
/// fence.
pub fn of_ledger(grants: &[Grant]) -> Vec<String> {
    let mut items: BTreeMap<u64, Vec<&Grant>> = BTreeMap::new();
    for grant in grants {
        items.entry(grant.item).or_default().push(grant);
    }
    let mut wrong = Vec::new();
    for its in items.values_mut() {
        its.sort_by_key(|grant| grant.fence);
        for pair in its.windows(2) {
            if pair[0].until > pair[1].from || pair[0].fence >= pair[1].fence {
                wrong.push(format!("{:?} and {:?}", pair[0], pair[1]));
            }
        }
    }
    wrong
}

/// By what the workers noted: nobody knew that they had an item before the one who had it by a
/// smaller fence had begun to let go of it, or could have lost it.
pub fn of_notes(notes: &[Note], grants: &[Grant]) -> Vec<String> {
    let mut spans: HashMap<&str, (f64, f64)> = HashMap::new();
    let mut wrong = Vec::new();
    for note in notes {
        // When one that never began to let go was killed, nobody knows.
        if let Some(has) = note.has
            && spans.insert(&note.lease, (has, has)).is_some()
        {
            wrong.push(format!("granted twice: {note:?}"));
        }
    }
    let limits: HashMap<&str, f64> = notes.iter().filter_map(|note| Some((&*note.lease, note.until?))).collect();
    // Who heard of it when it may have been over already, on a busy machine, proves nothing.
    spans.retain(|lease, (has, _)| limits.get(lease).is_none_or(|limit| limit > has));
    for note in notes {
        if let (Some(lets_go), Some((has, until))) = (note.lets_go, spans.get_mut(&*note.lease)) {
            let limit = limits.get(&*note.lease).copied().unwrap_or(lets_go);
            *until = lets_go.min(limit).max(*has);
        }
    }
    let mut items: BTreeMap<u64, Vec<(u64, Span)>> = BTreeMap::new();
    for grant in grants {
        if let Some(span) = spans.get(&*grant.lease) {
            items.entry(grant.item).or_default().push((grant.fence, *span));
        }
    }
    let state = |fence| grants.iter().find(|grant| grant.fence == fence).map_or("", |grant| &*grant.state);
    let fences: HashMap<&str, u64> = grants.iter().map(|grant| (&*grant.lease, grant.fence)).collect();
    for note in notes {
        if fences.get(&*note.lease) != Some(&note.fence) {
            wrong.push(format!("the ledger knows no such grant: {note:?}"));
        }
    }
    for (item, its) in &mut items {
        its.sort_by_key(|(fence, _)| *fence);
        for pair in its.windows(2) {
            let ((before, (_, until)), (after, (from, _))) = (pair[0], pair[1]);
            if until > from {
                let state = state(before);
                wrong.push(format!(
                    "item {item}: fence {before} ({state}) had it until {until}, fence {after} from {from}"
                ));
            }
        }
    }
    wrong
}

/// By what the workers were answered: what was taken back as released is so, and nobody was told
/// that they had lost what they must still have had.
pub fn of_answers(notes: &[Note], grants: &[Grant]) -> Vec<String> {
    let states: HashMap<&str, &str> = grants.iter().map(|grant| (&*grant.lease, &*grant.state)).collect();
    let limits: HashMap<&str, f64> = notes.iter().filter_map(|note| Some((&*note.lease, note.until?))).collect();
    let mut wrong = Vec::new();
    for note in notes {
        let state = states.get(&*note.lease).copied().unwrap_or("unknown");
        let limit = limits.get(&*note.lease).copied().unwrap_or_default();
        if note.released.is_some() && state != "released" {
            wrong.push(format!("it is {state}: {note:?}"));
        }
        if note.lost.is_some_and(|at| at < limit) {
            wrong.push(format!("it is {state}, and was to last until {limit}: {note:?}"));
        }
    }
    wrong
}

fn grant(lease: &str, fence: u64, from: u64, until: u64) -> Grant {
    Grant { lease: lease.to_owned(), item: 1, fence, from, until, state: "released".to_owned() }
}

fn note(lease: &str, fence: u64, has: Option<f64>, lets_go: Option<f64>) -> Note {
    let until = has.map(|has| has + 60.0);
    Note { lease: lease.to_owned(), fence, has, lets_go, until, released: None, lost: None }
}

#[test]
fn a_history_in_which_two_have_one_item_is_found_out() {
    assert!(of_ledger(&[grant("a", 1, 10, 20), grant("b", 2, 20, 30)]).is_empty());
    assert_eq!(of_ledger(&[grant("a", 1, 10, 21), grant("b", 2, 20, 30)]).len(), 1);
    assert_eq!(of_ledger(&[grant("a", 2, 10, 20), grant("b", 2, 20, 30)]).len(), 1);
    let grants = [grant("a", 1, 10, 20), grant("b", 2, 20, 30)];
    let honest = [note("a", 1, Some(1.0), None), note("a", 1, None, Some(2.0)), note("b", 2, Some(2.5), None)];
    assert!(of_notes(&honest, &grants).is_empty());
    let early = [note("a", 1, Some(1.0), None), note("a", 1, None, Some(3.0)), note("b", 2, Some(2.5), None)];
    assert_eq!(of_notes(&early, &grants).len(), 1);
    let late = [note("a", 1, Some(3.0), None), note("b", 2, Some(2.5), None)];
    assert_eq!(of_notes(&late, &grants).len(), 1);
    assert_eq!(of_notes(&[note("c", 3, Some(1.0), None)], &grants).len(), 1);
    let twice = [note("a", 1, Some(1.0), None), note("a", 1, Some(1.0), None)];
    assert!(!of_notes(&twice, &grants).is_empty());
}

#[test]
fn an_answer_that_did_not_hold_is_found_out() {
    let mut grants = [grant("a", 1, 10, 20)];
    let has = note("a", 1, Some(1.0), None);
    let released = Note { released: Some(2.0), ..note("a", 1, None, None) };
    let lost = |at| Note { lost: Some(at), ..note("a", 1, None, None) };
    assert!(of_answers(&[has.clone(), released.clone()], &grants).is_empty());
    assert_eq!(of_answers(&[has.clone(), lost(60.0)], &grants).len(), 1);
    assert!(of_answers(&[has.clone(), lost(61.5)], &grants).is_empty());
    grants[0].state = "expired".to_owned();
    assert_eq!(of_answers(&[has, released], &grants).len(), 1);
}
