//! What the NAT agent holds to whatever it is told: the budget, the sockets, and that what is over stays over.

#[path = "agent/model.rs"]
mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_inputs_in_any_order_break_the_budget_or_name_what_is_over(
        bytes in proptest::collection::vec(any::<u8>(), 0..1_500),
    ) {
        model::run(&bytes);
    }
}
