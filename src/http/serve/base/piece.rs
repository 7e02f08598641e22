//! Bytes of somebody else that an answer holds until its client has them. What becomes of their memory then is decided in
//! `Budget::let_go`.

use super::budget::Charge;

/// Bytes that stay where they are for as long as this lives.
pub trait Piece: Send + std::fmt::Debug {
    fn bytes(&self) -> &[u8];

    /// Nobody else can read them any more, and nobody will before their memory is freed: they may turn to zeros. Once true, it
    /// stays so.
    fn is_ours(&self) -> bool {
        false
    }
}

/// A piece that nobody reads any more. It counts until its pages are the kernel's again.
#[derive(Debug)]
pub struct Spent {
    pub piece: Box<dyn Piece>,
    pub charge: Charge,
}

/// Gives the pages of spent pieces back to the kernel. Whoever calls it does not wait for that.
pub trait Disposal: Send + Sync + std::fmt::Debug {
    fn dispose(&self, spent: Spent);
}
