//! Run folders: new, resumed, in use, and not ours.

use std::fs;

use flowprior::Result;
use flowprior::train::{Config, Resume, RunDir, checkpoint};

use super::{Outcome, latest_step, names, save, scratch};

#[test]
fn a_run_folder_is_resumed_refused_or_started_as_asked() -> Outcome {
    let dir = scratch()?;
    let root = dir.path().join("runs/a");
    let start = |resume: Resume| RunDir::start(&root, &resume);
    let (run, first) = start(Resume::Auto)?;
    assert!(first.checkpoint.is_none() && first.notes.is_empty());
    run.write_config(&Config::default())?;
    assert_eq!(run.read_config()?, Config::default());
    drop(run);

    let error = start(Resume::Never).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("is not empty: continue it with `--resume auto`"), "{error}");
    assert_eq!(error.exit_code(), 2);

    let (run, again) = start(Resume::Auto)?; // killed before its first checkpoint
    assert!(again.checkpoint.is_none());
    for step in [10, 20, 30] {
        save(&run.checkpoints(), step, 9)?;
    }
    drop(run);
    let step = |start: Result<(RunDir, flowprior::train::run_dir::Start)>| -> Result<Option<u64>> {
        Ok(start?.1.checkpoint.map(|c| c.manifest().step))
    };
    assert_eq!(step(start(Resume::Auto))?, Some(30));
    assert_eq!(step(start(Resume::From(root.join("checkpoints/0000030"))))?, Some(30));
    assert_eq!(step(start(Resume::From(root.clone())))?, Some(30));
    let error = start(Resume::From(root.join("checkpoints/0000010"))).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("0000030 is newer than the checkpoint of step 10"), "{error}");

    let other = RunDir::start(&dir.path().join("b"), &Resume::From(root.join("checkpoints/0000010")));
    assert_eq!(step(other)?, Some(10));
    let missing = start(Resume::From(dir.path().join("nowhere"))).map(|_| ()).unwrap_err().to_string();
    assert!(
        missing.ends_with("nowhere: folder: expected a run, or a checkpoint of one, found nothing"),
        "{missing}"
    );
    Ok(())
}

#[test]
fn auto_sets_a_broken_newest_checkpoint_aside_and_says_so() -> Outcome {
    let dir = scratch()?;
    let (run, _) = RunDir::start(dir.path(), &Resume::Never)?;
    save(&run.checkpoints(), 1, 2)?;
    let newest = save(&run.checkpoints(), 2, 2)?;
    fs::write(newest.join("model.safetensors"), "torn")?;
    let exact = checkpoint::find(&newest).map(|_| ()).unwrap_err();
    assert!(exact.to_string().contains("0000002/model.safetensors: length"), "{exact}");
    drop(run);
    let (run, start) = RunDir::start(dir.path(), &Resume::Auto)?;
    assert_eq!(start.checkpoint.map(|c| c.manifest().step), Some(1));
    assert_eq!(start.notes.len(), 1);
    assert!(
        start.notes[0].contains(".broken-0000002: ") && start.notes[0].contains("expected"),
        "{:?}",
        start.notes
    );
    assert_eq!(latest_step(&run.checkpoints())?, Some(1));
    save(&run.checkpoints(), 2, 2)?;
    assert_eq!(latest_step(&run.checkpoints())?, Some(2));
    Ok(())
}

#[test]
fn a_run_folder_in_use_names_the_process() -> Outcome {
    let dir = scratch()?;
    let (run, _) = RunDir::start(dir.path(), &Resume::Never)?;
    for resume in [Resume::Never, Resume::Auto] {
        let error = RunDir::start(dir.path(), &resume).map(|_| ()).unwrap_err();
        let words = format!("already in use by process {}", std::process::id());
        assert!(error.to_string().contains(&words), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
    drop(run);
    RunDir::start(dir.path(), &Resume::Auto)?;
    Ok(())
}

#[test]
fn a_folder_that_is_no_run_is_left_as_it_was() -> Outcome {
    let dir = scratch()?;
    fs::write(dir.path().join("thesis.tex"), "precious")?;
    for resume in [Resume::Never, Resume::Auto] {
        let error = RunDir::start(dir.path(), &resume).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("has files, but is not a run folder"), "{error}");
    }
    assert_eq!(names(dir.path())?, ["thesis.tex"]);
    assert!(RunDir::open(dir.path()).is_err());
    Ok(())
}
