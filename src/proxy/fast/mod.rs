//! The fast path: plain exchanges of HTTP/1.1 (whole and unmistakable heads, short bodies that are here) with upstreams of
//! HTTP/1.1, from bytes to bytes. It takes the same steps as [`Gateway::forward`], with the same keys, grants, tokens, limits
//! and records; only how HTTP is read and written differs. What is not plain, or would be refused, is left to hyper before
//! anything was done for it.
//!
//! ```text
//! Call ──identify──▶ Agent ──verdict──▶ Grant ──token──▶ Bearer ──write──▶ Exchange ──read──▶ Answer ──▶ Relay
//! ```

mod answer;
mod call;
mod exchange;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod outbound;
mod relay;

use std::future::{Future, poll_fn};
use std::pin::Pin;

use http::StatusCode;

use self::answer::{Answer, Asked};
use self::call::{Call, Read};
use self::exchange::Exchange;
use super::{Gateway, Refusal, admit, uses};
use crate::access::{Caller, Grant, Verdict};
use crate::accounts::{Bearer, TokenError};
use crate::audit::Receipt;
use crate::ids::RequestId;
use crate::net::{After, FastPath, Gone, More, Plain};

/// Why an exchange ends without an upstream's answer.
enum Stop {
    /// Keyward says no.
    Refused(Refusal),
    /// There is nobody to tell.
    Gone,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Gone> for Stop {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl FastPath for Gateway {
    fn serve<'a>(&'a self, connection: Plain<'a>) -> Pin<Box<dyn Future<Output = After> + 'a>> {
        Box::pin(self.serve_plain(connection))
    }
}

impl Gateway {
    async fn serve_plain(&self, mut agent: Plain<'_>) -> After {
        loop {
            let call = match Call::read(agent.input(), &self.shared.limits) {
                Read::Whole(call) => call,
                Read::Odd => return After::HandOver,
                Read::Partial => match agent.more(&self.buffers).await {
                    More::Came => continue,
                    More::Odd => return After::HandOver,
                    More::Over => return After::Over,
                },
            };
            let Some((caller, grant)) = self.granted(&call, &mut agent) else { return After::HandOver };
            let Some(_under_way) = self.load.enter() else { return After::HandOver };
            agent.begin();
            let mut wire = self.buffers.take();
            let answered = self.answer_plainly(&mut agent, &call, (caller, grant), &mut wire).await;
            self.buffers.give(wire);
            let Ok(closes) = answered else { return After::Cut };
            agent.end(call.length());
            if closes || agent.is_stopping() {
                return After::Over;
            }
        }
    }

    /// Who asks, and the grant, for a call that will not be refused for who asks or for what. Has no effect.
    fn granted(&self, call: &Call, agent: &mut Plain<'_>) -> Option<(Caller, Grant)> {
        let from = agent.peer().0.ip();
        let input = agent.input();
        let policy = self.shared.access.snapshot().ok()?;
        let caller = policy.identify(call.key(input), from, self.shared.clock.now()).ok()?;
        let (slug, path) = call.target(input);
        match policy.verdict(&caller, slug, &call.method, path) {
            Verdict::Allow(grant) => self.is_for_fast_path(&grant).then_some((caller, grant)),
            Verdict::NotPermitted(_) | Verdict::TargetNotFound => None,
        }
    }

    fn is_for_fast_path(&self, grant: &Grant) -> bool {
        outbound::suits(grant.target()) && self.upstreams.pool(grant.target()).is_old()
    }

    /// Answers a call, one way or the other. Whether the connection closes then.
    async fn answer_plainly(
        &self,
        agent: &mut Plain<'_>,
        call: &Call,
        granted: (Caller, Grant),
        wire: &mut Vec<u8>,
    ) -> Result<bool, Gone> {
        let Ok(mut receipt) = agent.during(self.shared.audit.open(&call.method)).await? else {
            return self.refuse_plainly(agent, call, &Refusal::AuditUnavailable, None, wire).await;
        };
        let (slug, path) = call.target(agent.input());
        receipt.asked(&call.method, slug, path);
        match self.forward_plain(agent, call, granted, &mut receipt, wire).await {
            Ok(reply) => self.relay(agent, call, reply, receipt, wire).await,
            Err(Stop::Refused(refusal)) => self.refuse_plainly(agent, call, &refusal, Some(receipt), wire).await,
            Err(Stop::Gone) => Err(Gone),
        }
    }

    /// The way of a plain request. Each step takes what the one before made.
    async fn forward_plain<'a>(
        &'a self,
        agent: &mut Plain<'_>,
        call: &Call,
        (caller, grant): (Caller, Grant),
        receipt: &mut Receipt,
        wire: &mut Vec<u8>,
    ) -> Result<(Answer, Exchange<'a>, Grant, Bearer), Stop> {
        admit(&caller, receipt)?;
        uses(receipt, grant.target());
        let bearer = agent.during(self.shared.accounts.token(&grant)).await?.map_err(Refusal::from)?;
        if let Some(room) = &grant.target().room {
            let place = agent.during(room.enter(self.shared.timeouts.queue)).await?;
            receipt.hold(place.map_err(Refusal::from)?);
        }
        if !call.method.is_safe() {
            agent.during(receipt.intend()).await?.map_err(Refusal::from)?;
        }
        let (answer, exchange) = self.exchange(agent, call, &grant, &bearer, receipt, wire).await?;
        if answer.status != StatusCode::UNAUTHORIZED || bearer.generation() == 0 {
            return Ok((answer, exchange, grant, bearer));
        }
        // The upstream refused the token: one forced refresh, and the request once more. A second 401 is the agent's to see.
        match agent.during(self.shared.accounts.doubt(&grant, bearer.generation())).await? {
            Ok(Some(newer)) => {
                drop(exchange);
                let (answer, exchange) = self.exchange(agent, call, &grant, &newer, receipt, wire).await?;
                Ok((answer, exchange, grant, newer))
            }
            Err(error @ TokenError::Disconnected { .. }) => Err(Refusal::from(error).into()),
            Ok(None) | Err(TokenError::Unavailable { .. } | TokenError::Gone) => Ok((answer, exchange, grant, bearer)),
        }
    }

    /// Sends the request and waits for the answer's head.
    async fn exchange<'a>(
        &'a self,
        agent: &mut Plain<'_>,
        call: &Call,
        grant: &Grant,
        bearer: &Bearer,
        receipt: &Receipt,
        wire: &mut Vec<u8>,
    ) -> Result<(Answer, Exchange<'a>), Stop> {
        outbound::write(wire, call, agent.input(), grant, bearer).ok_or(Refusal::Internal)?;
        let mut exchange = Exchange::send(&self.upstreams, &self.buffers, agent, wire, grant).await?;
        let asked = asked(call, grant, bearer, receipt);
        loop {
            match Answer::read(&mut exchange.input, &asked, &self.shared.limits)? {
                Some(answer) => return Ok((answer, exchange)),
                None => exchange.more(agent, grant).await?,
            }
        }
    }

    /// Hands an answer on. The receipt ends with its last byte, or says that it was cut short.
    async fn relay(
        &self,
        agent: &mut Plain<'_>,
        call: &Call,
        (answer, mut exchange, grant, bearer): (Answer, Exchange<'_>, Grant, Bearer),
        mut receipt: Receipt,
        wire: &mut Vec<u8>,
    ) -> Result<bool, Gone> {
        let keeps = answer.keeps;
        receipt.answered(answer.status, None);
        receipt.sent(call.body as u64);
        wire.clear();
        let asked = Asked { closes: call.closes || agent.is_stopping(), ..asked(call, &grant, &bearer, &receipt) };
        let mut relay = answer.write(&mut exchange.input, &asked, wire);
        let relayed = exchange.relay(agent, &mut relay, wire).await;
        if relayed.is_err() {
            receipt.received(relay.received());
            return Err(Gone);
        }
        let (piece, clean) = exchange.last(&mut relay);
        receipt.received(relay.received());
        receipt.finished();
        // Before the last byte leaves: who has the answer finds it on record, and the connection free.
        drop(receipt);
        if keeps && clean {
            exchange.give_back(&self.upstreams);
        }
        let written = finish(agent, wire, &piece).await;
        self.buffers.give(piece);
        written.map(|()| asked.closes)
    }

    /// Gives one of Keyward's own answers.
    async fn refuse_plainly(
        &self,
        agent: &mut Plain<'_>,
        call: &Call,
        refusal: &Refusal,
        receipt: Option<Receipt>,
        wire: &mut Vec<u8>,
    ) -> Result<bool, Gone> {
        let request = receipt.as_ref().map_or_else(RequestId::next, Receipt::request_id);
        let (response, code) = refusal.answer(request, |account| self.shared.accounts.reconnect_url(account));
        let closes = call.closes || agent.is_stopping();
        answer::write_own(wire, &response, (request, &call.method), closes);
        if let Some(mut receipt) = receipt {
            receipt.answered(response.status(), Some(code));
            receipt.received(response.body().len() as u64);
            receipt.finished();
        }
        finish(agent, wire, &[]).await?;
        Ok(closes)
    }
}

/// Writes the end of an answer.
async fn finish(agent: &mut Plain<'_>, first: &[u8], then: &[u8]) -> Result<(), Gone> {
    exchange::write(agent, first, then, None).await?;
    poll_fn(|cx| agent.poll_flush(cx)).await
}

fn asked<'a>(call: &'a Call, grant: &'a Grant, bearer: &'a Bearer, receipt: &Receipt) -> Asked<'a> {
    let target = grant.target();
    Asked {
        method: &call.method,
        base: &target.base,
        slug: &target.slug,
        guarded: target.reflect_guard,
        cookies: target.transport.set_cookie,
        secrets: bearer.secrets(),
        request: receipt.request_id(),
        closes: call.closes,
    }
}

/// A length, when it is written in digits alone.
fn number(value: &[u8]) -> Option<u64> {
    let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    digits.then(|| value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}
