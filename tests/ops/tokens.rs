//! Sequences of two kinds of tokens: joined, parted, and the gradient of tokens that all samples share.

use flowprior::ops::tokens::{Part, Span, join_tokens, put_tokens, sum_tokens, take_tokens};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::any_device;
use crate::support::{
    Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all, fresh, no_backward,
};

/// What one of the two parts is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Own,
    Shared,
    Zeros,
}

#[derive(Debug)]
struct Join {
    samples: usize,
    tokens: [usize; 2],
    kinds: [Kind; 2],
    c: usize,
}

impl Join {
    const NAMES: [&str; 2] = ["a", "b"];

    fn rows(&self, part: usize) -> usize {
        match self.kinds[part] {
            Kind::Own => self.samples * self.tokens[part],
            Kind::Shared => self.tokens[part],
            Kind::Zeros => 0,
        }
    }
}

impl Case for Join {
    fn inputs(&self) -> Inputs {
        let given = (0..2).filter(|part| self.kinds[*part] != Kind::Zeros);
        given.fold(Inputs::default(), |inputs, part| {
            // Numbers that every storage type has.
            let values =
                (0..self.rows(part) * self.c).map(|i| ((i * 29 + part) % 127) as f64 - 63.0).collect();
            inputs.constant(Self::NAMES[part], [self.rows(part), self.c], values)
        })
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let mut y = Vec::new();
        for n in 0..self.samples {
            for part in 0..2 {
                let size = self.tokens[part] * self.c;
                match self.kinds[part] {
                    Kind::Own => y.extend_from_slice(&x[Self::NAMES[part]][n * size..(n + 1) * size]),
                    Kind::Shared => y.extend_from_slice(&x[Self::NAMES[part]]),
                    Kind::Zeros => y.extend(vec![0.0; size]),
                }
            }
        }
        vec![y]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let given = |part: usize| -> Result<Option<Tensor<X>>> {
            if self.kinds[part] == Kind::Zeros {
                return Ok(None);
            }
            let values = x.single(Self::NAMES[part]).to_f32_vec()?;
            Tensor::from_f32(&x.device, [self.rows(part), self.c], &values).map(Some)
        };
        let tensors = [given(0)?, given(1)?];
        let part = |part: usize| match (&tensors[part], self.kinds[part]) {
            (Some(x), Kind::Shared) => Part::Shared(x.view()),
            (Some(x), _) => Part::Own(x),
            (None, _) => Part::Zeros(self.tokens[part]),
        };
        Ok(vec![answer(&join_tokens(&x.device, self.samples, self.c, [part(0), part(1)])?)])
    }

    fn backward<X: FloatX>(&self, _: &Tensors<X>) -> Result<Backward> {
        no_backward("it is take and sum, which have cases of their own")
    }
}

#[test]
fn parts_of_any_size_are_joined() {
    let shapes = [
        (1, [1, 1], 1),
        (3, [2, 5], 3),
        (5, [1, 4], 8),
        (2, [7, 3], 33),
        (17, [4, 1], 264),
        (2, [49, 16], 40),
    ];
    let kinds = [
        [Kind::Own, Kind::Shared],
        [Kind::Shared, Kind::Own],
        [Kind::Own, Kind::Zeros],
        [Kind::Zeros, Kind::Own],
        [Kind::Own; 2],
    ];
    let of = |(samples, tokens, c)| kinds.map(|kinds| Join { samples, tokens, kinds, c });
    check_all(shapes.into_iter().flat_map(of));
}

#[derive(Debug)]
struct Take {
    samples: usize,
    span: Span,
    c: usize,
}

impl Case for Take {
    fn inputs(&self) -> Inputs {
        Inputs::default().stored("x", [self.samples * self.span.of, self.c])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let inside = |row: usize| self.span.taken.contains(&(row % self.span.of));
        let rows = x["x"].chunks(self.c).enumerate().filter(|(row, _)| inside(*row));
        vec![rows.flat_map(|(_, row)| row.iter().copied()).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&take_tokens(x.stored("x"), &self.span)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        Ok([fresh("x", &put_tokens(x.stored("dy"), &self.span)?)].into())
    }
}

#[test]
fn the_first_or_last_tokens_are_taken_and_put_back() {
    let shapes = [
        (1, 1, 0..1, 1),
        (3, 7, 0..2, 3),
        (4, 7, 2..7, 8),
        (2, 65, 49..65, 40),
        (9, 6, 0..5, 264),
        (2, 3, 2..3, 1030),
    ];
    check_all(shapes.map(|(samples, of, taken, c)| Take { samples, span: Span { of, taken }, c }));
}

/// A table that every sample has: the forward is a join, the backward a sum.
#[derive(Debug)]
struct Shared {
    samples: usize,
    before: usize,
    tokens: usize,
    c: usize,
}

impl Case for Shared {
    fn inputs(&self) -> Inputs {
        Inputs::default().stored("table", [self.tokens, self.c])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let zeros = vec![0.0; self.before * self.c];
        vec![
            (0..self.samples)
                .flat_map(|_| zeros.iter().chain(&x["table"]).copied().collect::<Vec<_>>())
                .collect(),
        ]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let parts = [Part::Zeros(self.before), Part::Shared(x.stored("table").view())];
        Ok(vec![answer(&join_tokens(&x.device, self.samples, self.c, parts)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let mut dtable = x.accumulator("table")?;
        let of = self.before + self.tokens;
        sum_tokens(dtable.view_mut(), x.stored("dy"), &Span { of, taken: self.before..of })?;
        Ok([added("table", &dtable)].into())
    }
}

#[test]
fn shared_tokens_get_the_sum_of_all_samples() {
    let shapes = [
        (1, 0, 1, 1),
        (3, 2, 5, 3),
        (19, 1, 4, 8),
        (8, 3, 2, 33),
        (33, 4, 3, 264),
        (11, 49, 16, 40),
        (70, 0, 1, 1030),
    ];
    check_all(shapes.map(|(samples, before, tokens, c)| Shared { samples, before, tokens, c }));
}

#[test]
fn tokens_that_do_not_fit_are_refused() {
    let x = Tensor::<f32>::zeros(any_device(), [12, 4]);
    let say = |span: Span| take_tokens(&x, &span).unwrap_err().to_string();
    assert_eq!(
        say(Span { of: 5, taken: 0..1 }),
        "take_tokens: `x` has shape [12, 4], expected shape [10, 4]"
    );
    assert_eq!(say(Span { of: 4, taken: 2..5 }), "take_tokens: `span` has 2..5, expected some of 4 tokens");
    let error = put_tokens(&x, &Span { of: 8, taken: 2..6 }).unwrap_err().to_string();
    assert_eq!(error, "put_tokens: `span` has 2..6, expected the first or the last of 8 tokens");
    let parts = [Part::Own(&x), Part::Zeros(1)];
    let error = join_tokens(any_device(), 5, 4, parts).unwrap_err().to_string();
    assert_eq!(error, "join_tokens: `part` has shape [12, 4], expected shape [10, 4]");
    let mut dtable = Tensor::<f32>::zeros(any_device(), [2, 4]);
    assert!(sum_tokens(dtable.view_mut(), &x, &Span { of: 4, taken: 0..3 }).is_err());
}
