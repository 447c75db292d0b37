-- What audit records have in common, once per slice: who did what to what. A record with all its columns is
-- audit join audit_series using (slice, series). The record of a request whose column request is null has the request's id.
create table audit_series (
    slice bigint not null,
    series bigint not null,
    actor text,
    action text not null,
    agent_key bytea,
    target text,
    account bytea,
    method text,
    primary key (slice, series)
);
create table audit_before as select * from audit;
drop table audit;
create table audit (
    organization bytea not null,
    slice bigint not null,
    id bytea not null,
    at bigint not null,
    series bigint not null,
    request bytea,
    path text,
    status bigint,
    code text,
    bytes_in bigint,
    bytes_out bigint,
    duration_us bigint,
    detail text,
    primary key (organization, slice, id)
);
-- These count from one; the numbers of those to come are hashes.
insert into audit_series (slice, series, actor, action, agent_key, target, account, method)
select slice, row_number() over (order by slice), actor, action, agent_key, target, account, method
from (select distinct slice, actor, action, agent_key, target, account, method from audit_before) as different;
insert into audit
    (organization, slice, id, at, series, request, path, status, code, bytes_in, bytes_out, duration_us, detail)
select a.organization, a.slice, a.id, a.at, s.series, a.request, a.path, a.status, a.code, a.bytes_in, a.bytes_out,
    a.duration_us, a.detail
from audit_before a join audit_series s on s.slice = a.slice and s.action = a.action
    and s.actor is not distinct from a.actor and s.agent_key is not distinct from a.agent_key
    and s.target is not distinct from a.target and s.account is not distinct from a.account
    and s.method is not distinct from a.method;
drop table audit_before;
