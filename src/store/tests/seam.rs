//! The seam between the named transactions and the engine.

use std::ops::ControlFlow;

use super::*;
use crate::store::sql::{ErrorClass, Value as Cell, params};

#[test]
fn values_come_back_as_they_went_and_what_is_expected_otherwise_is_named() {
    let rig = Rig::new();
    rig.store
        .write("values", |tx| {
            let sent = [Cell::Null, Cell::Int(-7), Cell::Text("tëxt"), Cell::Bytes(&[0, 255])];
            let back = tx.row("SELECT ?1, ?2, ?3, ?4", &sent, |r| {
                assert_eq!((r.get::<Option<i64>>(0)?, r.get::<i64>(1)?), (None, -7));
                assert_eq!((r.get::<String>(2)?, r.get::<Vec<u8>>(3)?), ("tëxt".to_owned(), vec![0, 255]));
                assert_eq!((r.size(2)?, r.size(0)?, r.text(1)?, r.number(2)?), (5, 0, "-7".to_owned(), 0));
                (0..4).map(|n| Ok(r.value(n)? == sent[n])).collect::<Result<Vec<_>, SqlError>>()
            })?;
            assert_eq!(back, Some(vec![true; 4]));
            let wrong = tx.row("SELECT 'x' AS queued", params![], |r| r.get::<i64>(0)).unwrap_err();
            assert_eq!(wrong.to_string(), "a text in column \"queued\", an integer was expected");
            assert_eq!(wrong.class, ErrorClass::Rows);
            // A text that is no UTF-8 is read with replacements, or not at all.
            let broken = "SELECT CAST(x'66ff' AS TEXT)";
            assert_eq!(tx.row(broken, params![], |r| r.text(0))?.as_deref(), Some("f\u{fffd}"));
            assert!(tx.row(broken, params![], |r| r.get::<String>(0)).unwrap_err().lies_in_rows());
            Ok(())
        })
        .unwrap();
}

#[test]
fn rows_are_read_until_somebody_has_enough() {
    let rig = Rig::new();
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<9) SELECT i FROM n";
    rig.store
        .write("rows", move |tx| {
            let mut seen = Vec::new();
            tx.sql.each(numbers, params![], |r| {
                seen.push(r.get::<i64>(0)?);
                Ok(if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            assert_eq!(seen, [1, 2, 3]);
            assert_eq!(tx.rows(numbers, params![], |r| r.get::<i64>(0))?.len(), 9);
            assert!(tx.exists(numbers, params![])? && !tx.exists("SELECT 1 WHERE 1=0", params![])?);
            let insert = "INSERT INTO journal (event_id, event, key, session_id, sid, upto, fields, bid, at)
                 VALUES (?1, 'session_end', 'k', 's', 1, 0, '{}', 1, 1) RETURNING jid";
            let first = tx.insert(insert, params!["a"])?;
            assert_eq!(tx.insert(insert, params!["b"])?, first + 1);
            Ok(())
        })
        .unwrap();
}
