#![allow(clippy::unwrap_used)] // tests panic on purpose
use super::*;
use crate::score::grounder::PendingMask;
use api::{Activation, ActivationImage, Explanation, Picture};

/// Masks by the picture's number, on 2 × 2 patches.
struct Fixed {
    protocol: Protocol,
    masks: Vec<Option<[usize; 2]>>,
}

/// No patch has this number: a mask without a pixel.
const NOWHERE: usize = 9;

impl Grounder for Fixed {
    fn author(&self) -> &str {
        "a test"
    }

    fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn knows(&self, label: &str) -> bool {
        label == "cat"
    }

    fn ground<'a>(&'a self, shown: &'a Shown, _label: &'a str) -> PendingMask<'a> {
        let found = self.masks[shown.id().parse::<usize>().unwrap()];
        let on = |patches: [usize; 2]| (0..4).map(|patch| patches.contains(&patch)).collect();
        let mask = found.map(|patches| Mask { height: 2, width: 2, on: on(patches) });
        Box::pin(async move { Ok(mask) })
    }
}

const PAPER: Protocol = Protocol { pictures: 5, every_other: false, threshold: 0.0 };

fn shown(number: usize, firing: &[(u32, f32)]) -> Shown {
    let picture = Picture { id: number.to_string(), ..Picture::default() };
    let activation = Activation {
        image: ActivationImage { picture, grid: [2, 2] },
        feature_acts_indices: firing.iter().map(|(patch, _)| *patch).collect(),
        feature_acts_values: firing.iter().map(|(_, value)| *value).collect(),
        max_value: firing.iter().map(|(_, value)| *value).fold(0.0, f32::max),
        ..Activation::default()
    };
    Shown { activation, picture: Vec::new() }
}

fn subject(label: &str, shown: Vec<Shown>) -> Subject {
    let explanation = Explanation { description: label.into(), ..Explanation::default() };
    Subject { explanation, shown, ..Subject::default() }
}

async fn score(protocol: Protocol, masks: &[Option<[usize; 2]>], subject: &Subject) -> Option<Measured> {
    let iou = Iou::new(Arc::new(Fixed { protocol, masks: masks.to_vec() }));
    assert_eq!((iou.type_name(), iou.author()), ("iou", "a test"));
    iou.score(subject).await.unwrap()
}

#[test]
fn iou_is_what_both_have_of_what_either_has() {
    let at = |patches: &[usize]| (0..4).map(|patch| patches.contains(&patch)).collect::<Vec<_>>();
    assert!((iou(&at(&[0, 1]), &at(&[1, 2])) - 1.0 / 3.0).abs() < 1e-6);
    assert_eq!(iou(&at(&[0, 1]), &at(&[0, 1])), 1.0);
    assert_eq!(iou(&at(&[0]), &at(&[])), 0.0, "nothing is grounded");
    assert_eq!(iou(&at(&[]), &at(&[])), 0.0, "nor does anything fire");
}

#[test]
fn everything_that_is_not_fully_silent_is_area() {
    // Shares of the firing patch at the four pixels: 1, 3/4, 1/4, 0.
    assert_eq!(area(&[true, false], [1, 2], [1, 4]), [true, true, true, false]);
    // From pixel 1498 on the share is under half a grey level of 224.
    let fine = area(&[true, false], [1, 2], [1, 2000]);
    assert_eq!(fine.iter().filter(|on| **on).count(), 1498);
    assert!(fine[1497] && !fine[1498]);
    let corner = area(&[true, false, false, false], [2, 2], [4, 4]);
    let rows: Vec<String> =
        corner.chunks(4).map(|row| row.iter().map(|on| if *on { '#' } else { '.' }).collect()).collect();
    assert_eq!(rows, ["###.", "###.", "###.", "...."]);
    let same = [true, false, false, true];
    assert_eq!(area(&same, [2, 2], [2, 2]), same, "masks on the patches themselves");
}

#[test]
fn areas_move_around_the_edges() {
    // Two rows of three.
    let first = [true, false, false, false, false, false];
    assert_eq!(moved(&first, [2, 3], [1, 2]), [false, false, false, false, false, true]);
    let last = [false, false, false, false, false, true];
    assert_eq!(moved(&last, [2, 3], [1, 1]), first);
    assert_eq!(moved(&last, [2, 3], [0, 0]), last);
}

#[tokio::test]
async fn a_picture_in_which_nothing_is_grounded_counts_zero() {
    let subject = subject("cat", vec![shown(0, &[(0, 1.0)]), shown(1, &[(0, 0.5)])]);
    let found = score(PAPER, &[Some([0, 0]), Some([NOWHERE; 2])], &subject).await.unwrap();
    assert_eq!((found.value, found.interval, found.samples), (0.5, [0.0, 1.0], 2));
    // The second picture's area at four random places, one of four of which is the mask: quarters, halved by the mean.
    let quarters = found.baseline * 8.0;
    assert!(quarters.fract() == 0.0 && (0.0..=4.0).contains(&quarters), "{}", found.baseline);
    assert_eq!(score(PAPER, &[Some([0, 0]), Some([NOWHERE; 2])], &subject).await, Some(found), "the same again");
}

#[tokio::test]
async fn what_has_no_masks_or_no_such_name_has_no_score() {
    let fires = || vec![shown(0, &[(0, 1.0)])];
    assert_eq!(score(PAPER, &[Some([0, 0])], &subject("dog", fires())).await, None);
    assert_eq!(score(PAPER, &[None], &subject("cat", fires())).await, None);
    assert_eq!(score(PAPER, &[], &subject("cat", Vec::new())).await, None);
}

#[tokio::test]
async fn the_protocol_says_which_pictures_and_what_is_area() {
    let subject = subject(
        "cat",
        vec![
            shown(0, &[(0, 4.0)]),
            shown(1, &[(1, 3.0)]),
            // Patch 3 is under a fifth of the highest activation.
            shown(2, &[(2, 2.0), (3, 0.5)]),
            shown(3, &[(3, 1.0)]),
        ],
    );
    // Picture 1 has no masks: of the others, 0, 2 and 3, only 2 did not choose the label.
    let masks = [Some([NOWHERE; 2]), None, Some([2, 2]), Some([NOWHERE; 2])];
    let held_out = Protocol { pictures: 40, every_other: true, threshold: 0.2 };
    let found = score(held_out, &masks, &subject).await.unwrap();
    assert_eq!((found.value, found.samples, found.interval), (1.0, 1, [1.0, 1.0]));
    let everywhere = Protocol { threshold: 0.0, ..held_out };
    assert_eq!(score(everywhere, &masks, &subject).await.unwrap().value, 0.5, "two patches, one of them a cat");
    let one = Protocol { pictures: 1, ..PAPER };
    assert_eq!(score(one, &masks, &subject).await.unwrap().samples, 1);
}

#[tokio::test]
async fn a_patch_outside_the_grid_is_an_error_that_names_the_picture() {
    let iou = Iou::new(Arc::new(Fixed { protocol: PAPER, masks: vec![Some([0, 0])] }));
    let wrong = subject("cat", vec![shown(0, &[(4, 1.0)])]);
    let error = iou.score(&wrong).await.unwrap_err().to_string();
    assert_eq!(error, "picture 0: patch 4 is not on a grid of 2 by 2");
}
