//! Which kind of thing a fail2ban filter finds. Its files do not say; this
//! goes by the filter's name and, where one finds several kinds, by what the
//! expression that matched looks for.

use crate::event::Category;

/// Filters that find one kind of thing, by what their name begins with.
const BY_NAME: &[(&str, Category)] = &[
    ("apache-badbots", Category::BadBot),
    ("apache-botsearch", Category::WebProbe),
    ("apache-fakegooglebot", Category::BadBot),
    ("apache-modsecurity", Category::WafBlock),
    ("apache-nohome", Category::WebProbe),
    ("apache-noscript", Category::WebProbe),
    ("apache-overflows", Category::WebAttack),
    ("apache-shellshock", Category::WebAttack),
    ("counter-strike", Category::AuthFailure),
    ("domino-smtp", Category::AuthFailure),
    ("exim-spam", Category::Spam),
    ("named-refused", Category::DnsRefused),
    ("nginx-bad-request", Category::ProtocolAbuse),
    ("nginx-botsearch", Category::WebProbe),
    ("nginx-forbidden", Category::WebForbidden),
    ("nginx-limit-req", Category::RateLimit),
    ("nsd", Category::DnsRefused),
    ("php-url-fopen", Category::WebAttack),
    ("portsentry", Category::ProtocolAbuse),
    ("scanlogd", Category::ProtocolAbuse),
    ("sendmail-reject", Category::SmtpReject),
    ("suhosin", Category::WebAttack),
    ("courier-smtp", Category::SmtpReject),
    ("xinetd-fail", Category::AuthFailure),
];

/// What an expression looks for, where it decides.
const BY_EXPRESSION: &[(&str, Category)] = &[
    ("SASL", Category::AuthFailure),
    ("authenticator failed", Category::AuthFailure),
    ("denied by server configuration", Category::WebForbidden),
    ("evasive", Category::Dos),
    ("lost connection", Category::ProtocolAbuse),
    ("protocol error", Category::ProtocolAbuse),
    ("synchronization error", Category::ProtocolAbuse),
    ("no MAIL in SMTP", Category::ProtocolAbuse),
    ("SSL_do_handshake", Category::ProtocolAbuse),
    ("identification string", Category::ProtocolAbuse),
    ("protocol version identification", Category::ProtocolAbuse),
    ("kex_exchange", Category::ProtocolAbuse),
    ("negotiate", Category::ProtocolAbuse),
    ("no matching", Category::ProtocolAbuse),
];

/// The kind of a match of this filter by this expression.
pub(crate) fn of_filter(filter: &str, expression: &str) -> Category {
    if let Some((_, category)) = BY_NAME.iter().find(|(name, _)| filter.starts_with(name)) {
        return *category;
    }
    if let Some((_, category)) = BY_EXPRESSION.iter().find(|(text, _)| expression.contains(text)) {
        return *category;
    }
    // Mail servers' filters find what is refused unless they say otherwise; all the others find logins.
    match filter {
        "postfix" | "exim" | "assp" | "qmail" => Category::SmtpReject,
        _ => Category::AuthFailure,
    }
}
